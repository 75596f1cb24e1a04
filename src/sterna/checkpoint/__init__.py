"""Points in time of a VM to go back to, and states that it goes on from."""
