"""Converting a volume's data in place: from one key to another, from plain to encrypted and back."""
