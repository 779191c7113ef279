//go:build linux && amd64

package library

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// arena is memory outside Go's heap, for what the library keeps: it never moves and is freed explicitly.
type arena struct {
	mem  []byte
	used int
}

func newArena(size int) (*arena, error) {
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("memory for the library: %w", err)
	}
	return &arena{mem: mem}, nil
}

// free clears, for there are passwords, and unmaps.
func (a *arena) free() error {
	clear(a.mem)
	return unix.Munmap(a.mem)
}

// str puts a C string.
func (a *arena) str(s string) unsafe.Pointer {
	at := a.used
	a.used += copy(a.mem[at:], s) + 1
	return unsafe.Pointer(&a.mem[at])
}

// Login says where a connection leads and who makes it.
type Login struct {
	Server, Thumbprint     string
	Port, NFCPort          uint32
	User, Password, Cookie string
	VM                     string // managed object id
}

// Params are a ConnectParams of the library with its strings. They must outlive the connection: Disconnect, Cleanup
// and EndAccess look at them again.
type Params struct {
	l *Library
	p unsafe.Pointer
	a *arena
}

// ConnectParams as all versions from 6.7 to 9 lay it out, and as earlier ones, which end at 72, tolerate. Unused
// fields are zero: specType 0 is a machine, named by vmxSpec.
//
//	 0 vmxSpec     8 serverName  16 thumbPrint  24 privateUse (long)  32 credType (i32)
//	40 creds: by password {userName, password}, by session {cookie, userName, key}
//	64 port (u32)  68 nfcHostPort (u32)  72 vimApiVer  80 reserved  88 state  96 spec  120 specType (i32)
const (
	paramsSize   = 128
	credPassword = 1
	credSession  = 2
)

// NewParams makes parameters. Every string is given, for the library does not look whether one is NULL.
func (l *Library) NewParams(in Login) (*Params, error) {
	vmx := "moref=" + in.VM
	size := paramsSize
	for _, s := range []string{vmx, in.Server, in.Thumbprint, in.User, in.Password, in.Cookie} {
		size += len(s) + 1
	}
	a, err := newArena(size)
	if err != nil {
		return nil, err
	}
	a.used = paramsSize
	p := &Params{l: l, p: unsafe.Pointer(&a.mem[0]), a: a}
	if l.f.AllocateConnectParams != nil {
		if p.p = l.f.AllocateConnectParams(); p.p == nil {
			err := fmt.Errorf("VixDiskLib_AllocateConnectParams gave nothing")
			return nil, joinFree(err, a)
		}
	}
	b := unsafe.Slice((*byte)(p.p), paramsSize)
	pointer := func(at int, s string) {
		binary.LittleEndian.PutUint64(b[at:], uint64(uintptr(a.str(s))))
	}
	pointer(0, vmx)
	pointer(8, in.Server)
	pointer(16, in.Thumbprint)
	if in.Cookie != "" {
		binary.LittleEndian.PutUint32(b[32:], credSession)
		pointer(40, in.Cookie)
		pointer(48, in.User)
		pointer(56, in.Password)
	} else {
		binary.LittleEndian.PutUint32(b[32:], credPassword)
		pointer(40, in.User)
		pointer(48, in.Password)
	}
	binary.LittleEndian.PutUint32(b[64:], in.Port)
	binary.LittleEndian.PutUint32(b[68:], in.NFCPort)
	return p, nil
}

func joinFree(err error, a *arena) error {
	if e := a.free(); e != nil {
		return fmt.Errorf("%w; %w", err, e)
	}
	return err
}

// Free gives the parameters back. The library frees the structure only, the strings are ours.
func (p *Params) Free() error {
	if p.l.f.FreeConnectParams != nil {
		p.l.f.FreeConnectParams(p.p)
	}
	return p.a.free()
}
