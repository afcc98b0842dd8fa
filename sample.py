"""Draw images that obey a hint with a trained ControlNet. Config: configs/sample.yaml."""

import sys

import hydra
from omegaconf import DictConfig

from cldm.runs.configs import (
    home_typed,
    keys_suggested,
    mistakes_refused,
    notes_told_once,
    refuse_mistakes,
    register_resolvers,
)
from cldm.runs.folder import Refused
from ldm.files import InUse

register_resolvers()


@hydra.main(version_base="1.3", config_path="configs", config_name="sample")
def main(cfg: DictConfig) -> None:
    refuse_mistakes(cfg)
    notes_told_once()
    from cldm.sampling.drawing import sample  # and with it torch, which --help and refusals need not wait for

    try:
        with mistakes_refused():
            sample(cfg)
    except (Refused, InUse) as error:
        raise SystemExit(str(error)) from None
    except KeyboardInterrupt:
        raise SystemExit("stopped" + ("; the same command draws what is missing" if cfg.jobs else "")) from None


if __name__ == "__main__":
    sys.argv = home_typed(sys.argv)
    with keys_suggested("sample"):
        main()
