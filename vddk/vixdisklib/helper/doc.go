// Package helper is the life of the process vmkeep-vddk: it serves the requests of package wire with VMware's library.
//
// It hides the library's rules of order and threads (VDDK guide, "Multithreading considerations"):
//
//   - one thread, the main one, initialises and ends the library, connects, opens, closes and disconnects;
//   - each disk has a thread of its own for all its other calls; parallel transfers are asynchronous calls from it;
//   - completions come on threads of the library, and leave at once as answers;
//   - a disk is waited for before it is flushed or closed.
//
// When the client goes, by saying so or by its end, everything is closed, disconnected and given back. A library that
// does not let that happen is left behind by ending the process.
package helper
