"""python train.py [GROUP=OPTION] [SETTING=VALUE]: see rfdit/train.py and conf/train.yaml."""

from rfdit.train import main

if __name__ == "__main__":
    main()
