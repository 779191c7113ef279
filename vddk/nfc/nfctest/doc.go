// Package nfctest is a server double for nfc: authd and the NFC server of a host, with disks from a [Store] and, on
// request, every fault of a [Scenario].
//
// What it hides: the server's half of the protocol. A test, or the lab, gives it disks, takes tickets from
// [Server.Grant], and asks at the end with [Server.Quiet] whether every client left as it should.
//
// It is written for speed as well: reads of one connection are served concurrently, a fragment goes out in one system
// call, and nothing is allocated per request, so that benchmarks measure the client.
package nfctest
