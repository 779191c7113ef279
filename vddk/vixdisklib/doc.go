// Package vixdisklib opens disks through VMware's own library, libvixDiskLib, where the user has it.
//
// The library is not part of vmkeep and never shipped with it: the user names the directory of a VDDK distribution. It
// is loaded by a helper process, vmkeep-vddk, never by this one. What is hidden is that there is another process
// at all: a crash, a panic or a hang of the library ends the helper, and becomes an error of package vddk here. Credentials
// reach the helper over a socket pair; bytes of disks lie in memory both processes map.
//
// A helper serves one machine's snapshot (or the machine itself) for one [Transport]: its disks share a connection, and
// when the last of them is closed the connection is ended and the helper is gone.
//
// Where hotadd is among the modes, disks may be left attached to this machine by a process that dies. That is announced to
// [Transport.Announce] before, cleaned up by the helper before it ends, and by [Transport.Cleanup] later.
//
// Vocabulary: a mode is one of the library's transports (nbdssl, nbd, hotadd, san, file); a connection is a login of the
// library for one machine; a piece is what of the shared memory holds one request.
package vixdisklib
