"""The Hugging Face hub, which may be out of reach."""


def hub_is_reachable() -> bool:
    """One quick request: the hub's own client retries for half a minute before it gives up."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # of requests or of httpx, whichever this version of huggingface_hub uses
        return False
    return True
