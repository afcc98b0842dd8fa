"""Measure whether images obey: `python evaluate.py checkpoint=RUN protocol=NAME`. Config: configs/evaluate.yaml."""

import sys

import hydra
from omegaconf import DictConfig

from cldm.runs.checkout import code
from cldm.runs.configs import home_typed, keys_suggested, notes_told_once, refuse_mistakes, register_resolvers

register_resolvers()


@hydra.main(version_base="1.3", config_path="configs", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    code()  # of what runs, whatever is changed meanwhile
    refuse_mistakes(cfg)
    notes_told_once()
    from cldm.evaluation.measuring import evaluate  # and with it torch, which --help and refusals need not wait for

    try:
        evaluate(cfg)
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command draws what is missing") from None


if __name__ == "__main__":
    sys.argv = home_typed(sys.argv)
    with keys_suggested("evaluate"):
        main()
