"""What `sample.py` does with a pipeline: which pictures, made how, spread over devices, written where."""
