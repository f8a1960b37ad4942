"""What lies in Triton's repository beside a bundle: one thin model.py for every system."""
