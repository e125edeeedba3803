"""What Moxin costs beyond the work itself: measured, with the machine and the versions beside every number."""
