"""python train.py [GROUP=OPTION] [SETTING=VALUE]: see rfdit/commands/train.py and conf/train.yaml."""

from rfdit.__main__ import run

if __name__ == "__main__":
    run("train")
