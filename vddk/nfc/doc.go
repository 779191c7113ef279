// Package nfc reads and writes virtual disks over the network with nothing but Go: the protocol VMware calls NFC, the
// transports nbd and nbdssl of its disk library.
//
// What it hides: that a disk is a connection. A [Transport] takes a [Ticket] from vSphere, walks through the host's
// daemon on port 902 (twice TLS on one connection, see dial.go), speaks frames, keeps many requests in flight, and
// when the connection breaks while reading, takes a new ticket and goes on. Callers see a [vddk.Disk].
//
// Words: a ticket admits one connection; a session is such a connection with a disk opened on it; an operation is one
// request of at most [Options].MaxRequest bytes; a fragment is what one frame carries of it.
//
// Writes: a host acknowledges a write when it has taken it, not when it lies on the datastore. There is no known
// request to flush. Writes are taken to be durable once Close returned nil; a connection lost before makes the disk
// fail for good, because nobody can tell what was written.
//
// The server double, with every fault a host has been seen to show, is nfctest.
package nfc
