"""Ctrl-C at a chosen place."""


def interrupt_once(monkeypatch, owner, name, behind=False):
    """The next call of a method is an interrupt, or one comes when it is done; those behind it are
    as before."""
    method = getattr(owner, name)

    def interrupted(self, *args):
        monkeypatch.setattr(owner, name, method)
        if behind:
            method(self, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted)
