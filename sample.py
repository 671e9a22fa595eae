"""python sample.py ckpt=RUN 'prompts=[...]': see rfdit/sample.py and conf/sample.yaml."""

from rfdit.sample import main

if __name__ == "__main__":
    main()
