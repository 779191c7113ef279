// Package library binds VMware's libvixDiskLib at run time, without its headers and without cgo.
//
// It hides the binary interface: layouts by version, memory the library keeps, callbacks, and which functions a version
// has. It keeps no rules of calling order and threads; those are the business of package helper. All types
// are defined here from published facts about the interface; nothing of VMware's is contained.
//
// Loading works once per process, on x86-64 Linux, and wants the library's directory on LD_LIBRARY_PATH before the
// process started: the library's neighbours are found by name.
package library
