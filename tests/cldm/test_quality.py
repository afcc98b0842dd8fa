"""Distances between sets: nothing between equal ones, the closed form for Gaussian ones, torchmetrics' numbers."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d

from cldm.conditions import get_condition
from cldm.evaluation.clip import ClipScore
from cldm.evaluation.inception import Inception
from cldm.evaluation.quality import diversity, frechet_distance, kernel_distance, nearest_distances, thumbnails
from cldm.evaluation.reconstruction import Reconstruction
from cldm.evaluation.scores import Target, score
from cldm.worlds import get_world
from ldm.random import generator


def gaussian(count: int, mean: float, std: float, dim: int = 4, seed: int = 0) -> torch.Tensor:
    """Features whose sample mean and covariance are exactly those asked for."""
    x = torch.randn(count, dim, generator=generator("g", seed), dtype=torch.float64)
    x = x - x.mean(0)
    whiten = torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    return x @ whiten * std + mean


def test_a_set_is_at_no_distance_from_itself():
    x = torch.randn(50, 8, generator=generator(0))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert kernel_distance(x, x) <= 0


def test_frechet_distance_of_gaussians_is_the_closed_form():
    found = frechet_distance(gaussian(60, 1.0, 2.0), gaussian(80, -0.5, 0.5, seed=1))
    assert found == pytest.approx(4 * 1.5**2 + 4 * (2.0 - 0.5) ** 2)


def test_both_distances_are_those_of_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import poly_mmd

    class Pixels(nn.Module):
        num_features = 12

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1).float() / 255

    a, b = (torch.randint(0, 256, (40, 3, 2, 2), generator=generator(i)).to(torch.uint8) for i in range(2))
    theirs = FrechetInceptionDistance(feature=Pixels(), input_img_size=(3, 2, 2))
    theirs.update(a, real=True)
    theirs.update(b, real=False)
    ours = [Pixels()(x) for x in (a, b)]
    assert frechet_distance(*ours) == pytest.approx(theirs.compute().item(), rel=1e-3)
    assert kernel_distance(*ours) == pytest.approx(poly_mmd(*(x.double() for x in ours)).item(), rel=1e-6)


def test_frechet_distance_is_that_of_the_covariances_whatever_there_is_more_of_pictures_or_features():
    for n, m, d in ((20, 30, 50), (60, 70, 6), (20, 70, 50)):
        a = torch.randn(n, d, generator=generator("a", n), dtype=torch.float64)
        b = 2 * torch.randn(m, d, generator=generator("b", m), dtype=torch.float64) + 1
        cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
        root = torch.linalg.eigvals(cov_a @ cov_b).sqrt().real.sum()
        expected = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * root
        assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-6)
        assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the layout of the file that torch-fidelity publishes."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Blank(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_, **__):  # it is built from a file only
            pass

    folder = tmp_path_factory.mktemp("inception")
    torch.save({}, folder / "empty.pth")
    torch.manual_seed(0)
    blank = Blank("inception-v3-compat", ["2048"], str(folder / "empty.pth"))
    torch.save(blank.state_dict(), folder / "inception.pth")
    return folder / "inception.pth"


@pytest.mark.slow
def test_fid_is_that_of_torchmetrics_with_the_same_file(inception_file: Path):
    from torchmetrics.image.fid import FrechetInceptionDistance

    a, b = (torch.randint(0, 256, (5, 3, 32, 32), generator=generator(i)).to(torch.uint8) for i in range(2))
    theirs = FrechetInceptionDistance(feature_extractor_weights_path=str(inception_file))
    network = Inception(inception_file)
    ours = [network(x.float() / 127.5 - 1) for x in (a, b)]
    theirs.update(a, real=True)
    theirs.update(b, real=False)
    assert ours[0].shape == (5, 2048)
    assert frechet_distance(*ours) == pytest.approx(theirs.compute().item(), rel=1e-2)
    assert frechet_distance(ours[0], ours[0]) == pytest.approx(0, abs=1e-6)


class _Runs:
    def __reduce__(self):
        return (print, ("a file must not run anything",))


def test_inception_without_its_file_is_refused_and_no_file_runs_code(tmp_path: Path, capsys):
    with pytest.raises(FileNotFoundError, match="nothing is downloaded"):
        Inception(tmp_path / "none.pth")
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="holds no weights of torch-fidelity's Inception"):
        Inception(tmp_path / "other.pth")
    torch.save({"fc.weight": _Runs()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="holds no weights of torch-fidelity's Inception"):
        Inception(tmp_path / "evil.pth")
    assert "must not run" not in capsys.readouterr().out


def test_inception_says_what_to_install(tmp_path: Path, monkeypatch):
    (tmp_path / "file.pth").touch()
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[quality\]'"):
        Inception(tmp_path / "file.pth")


def test_one_picture_has_no_distribution():
    with pytest.raises(ValueError, match="at least two pictures"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(5, 3))


def test_diversity_is_within_groups():
    black, white = torch.full((1, 3, 4, 4), -1.0), torch.full((1, 3, 4, 4), 1.0)
    images = torch.cat([black, white, black, black])
    assert diversity(images, torch.tensor([0, 0, 1, 1])) == pytest.approx(0.5)
    assert math.isnan(diversity(images, torch.arange(4)))


def test_a_copy_of_a_training_image_has_distance_zero():
    training = torch.rand(5, 3, 64, 64, generator=generator(0)) * 2 - 1
    found = nearest_distances(torch.cat([training[3:4], -training[3:4]]), thumbnails(training))
    assert found[0].item() == pytest.approx(0, abs=1e-6)
    assert found[1] > 0.01


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import open_clip

    folder = tmp_path_factory.mktemp("clip")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    for name, width in (("tiny-clip", 16), ("other-clip", 32)):
        config["embed_dim"] = width
        (folder / f"{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(folder / f"{name}.json")
    torch.manual_seed(0)
    torch.save(open_clip.create_model("tiny-clip", pretrained=None).state_dict(), folder / "tiny.pt")
    return folder / "tiny.pt"


def test_clip_score_is_the_cosine_of_the_file_s_model(clip_file: Path):
    import open_clip

    judge = ClipScore("tiny-clip", clip_file)
    images = torch.rand(2, 3, 32, 32, generator=generator(0)) * 2 - 1
    found = judge(images, ["a star", "a ring"])
    model, _, _ = open_clip.create_model_and_transforms("tiny-clip", pretrained=str(clip_file))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.visual.image_mean, model.visual.image_std))
    with torch.no_grad():
        x = model.encode_image(((images + 1) / 2 - mean) / std)
        y = model.encode_text(open_clip.get_tokenizer("tiny-clip")(["a star", "a ring"]))
    assert found.tolist() == pytest.approx(torch.cosine_similarity(x, y).tolist(), abs=1e-4)
    assert found[0] != found[1]


def test_clip_without_its_file_is_refused_not_random(clip_file: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nothing is downloaded"):
        ClipScore("tiny-clip", tmp_path / "none.pt")
    with pytest.raises(ValueError, match="holds no other-clip"):
        ClipScore("other-clip", clip_file)


def test_an_empty_caption_has_no_clip_score_and_costs_no_other_image_its_own(clip_file: Path):
    """Neither the images beside it nor the place of the empty one matter."""
    clip, canny = ClipScore("tiny-clip", clip_file), get_condition("canny")
    images = torch.rand(4, 3, 32, 32, generator=generator(0)) * 2 - 1

    def scored(captions: list[str], prompts: list[str]) -> dict[str, list[float]]:
        found = score(images, Target(torch.zeros(4, 3, 32, 32), captions, prompts), canny, clip)
        return {name: values.tolist() for name, values in found.items() if name.startswith("clip")}

    texts = ["a star", "a ring", "a moon", "a sun"]
    full = scored(texts, texts)["clip_caption"]
    for empty in range(4):
        holed = [*texts[:empty], "", *texts[empty + 1 :]]
        expected = pytest.approx([*full[:empty], float("nan"), *full[empty + 1 :]], abs=1e-5, nan_ok=True)
        assert scored(holed, holed) == {"clip_caption": expected, "clip_prompt": expected}
    assert scored(texts, [""] * 4) == {"clip_caption": full}  # the setting without prompts


@pytest.mark.slow
def test_reconstructions_are_measured_by_judge_inception_and_vgg16(inception_file: Path, tmp_path: Path):
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    torch.save(torchvision.models.vgg16(weights=None).state_dict(), tmp_path / "vgg16.pth")
    judge = get_world("stickers").judge()
    measured = Reconstruction(inception_file, tmp_path / "vgg16.pth")
    real = torch.rand(6, 3, 64, 64) * 2 - 1
    same, other = measured(real, real, judge), measured(real, avg_pool2d(real, 3, 1, 1), judge)
    assert same.keys() == {"fid_judge", "kid_judge", "fid", "kid", "perceptual"}
    assert same["perceptual"] == 0
    assert abs(same["fid_judge"]) < 1e-3 < other["fid_judge"]
    assert other["perceptual"] > 0.01
    assert other["fid"] > same["fid"]
    assert Reconstruction()(real, real) == {}
    with pytest.raises(FileNotFoundError, match="no VGG16 weights"):
        Reconstruction(vgg16=tmp_path / "none.pth")
