package vixdisklib_test

// childVariable tells the test binary to be a client that is killed.
const childVariable = "VMKEEP_VIXTEST_CHILD"

func child(string) {}
