"""Work that is done after the response: functions with their arguments, in order or in batches, under a supervisor."""
