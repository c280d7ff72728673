"""Our numbers against the reference's; see cases.py for the contract."""
