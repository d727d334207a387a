"""What runs inside one process of a worker group: plain classes that know nothing of Ray."""
