"""python sample.py ckpt=RUN 'prompts=[...]': see rfdit/commands/sample.py and conf/sample.yaml."""

from rfdit.__main__ import run

if __name__ == "__main__":
    run("sample")
