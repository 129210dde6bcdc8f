"""What `check` looks at: whether a payload can be told from random bytes."""
