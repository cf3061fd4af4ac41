"""What leaves a window that overflows: one file a policy, each writes the next manifest. `base` has the seam."""
