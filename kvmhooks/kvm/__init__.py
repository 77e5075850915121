"""The proof that KVM runs Linux here: a probe guest, and its verdict."""
