//go:build linux && amd64

package library

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"unsafe"

	"github.com/ebitengine/purego"
)

// Codes the binding itself needs to know.
const (
	Async        = 25000 // an asynchronous call was accepted
	NotSupported = 6     // VIX_E_NOT_SUPPORTED
)

// Code is what the low 16 bits of an error say.
func Code(e uint64) uint64 { return e & 0xffff }

// Library is the loaded library.
type Library struct {
	Path       string // of the file behind all links
	Major      int
	Allocation bool // QueryAllocatedBlocks is there

	f        functions
	printf   func(buf unsafe.Pointer, size uintptr, format, args uintptr) int32
	log      func(level int, text string)
	done     uintptr // the one completion callback
	mu       sync.Mutex
	inFlight map[uintptr]func(code uint64)
	last     uintptr
}

// functions are the library's, by their names without the prefix.
type functions struct {
	InitEx                func(major, minor uint32, log, warn, panic uintptr, dir, config unsafe.Pointer) uint64
	Exit                  func()
	ListTransportModes    func() unsafe.Pointer
	GetErrorText          func(code uint64, locale uintptr) unsafe.Pointer
	FreeErrorText         func(text unsafe.Pointer)
	ConnectEx             func(params unsafe.Pointer, readOnly uint8, snapshot, modes unsafe.Pointer, out unsafe.Pointer) uint64
	Disconnect            func(conn uintptr) uint64
	PrepareForAccess      func(params, identity unsafe.Pointer) uint64
	EndAccess             func(params, identity unsafe.Pointer) uint64
	Cleanup               func(params unsafe.Pointer, cleaned, remaining unsafe.Pointer) uint64
	Open                  func(conn uintptr, path unsafe.Pointer, flags uint32, out unsafe.Pointer) uint64
	Close                 func(disk uintptr) uint64
	GetInfo               func(disk uintptr, out unsafe.Pointer) uint64
	FreeInfo              func(info unsafe.Pointer)
	GetTransportMode      func(disk uintptr) unsafe.Pointer
	Flush                 func(disk uintptr) uint64
	ReadAsync             func(disk uintptr, first, n uint64, buf unsafe.Pointer, done, data uintptr) uint64
	WriteAsync            func(disk uintptr, first, n uint64, buf unsafe.Pointer, done, data uintptr) uint64
	Wait                  func(disk uintptr) uint64
	AllocateConnectParams func() unsafe.Pointer
	FreeConnectParams     func(params unsafe.Pointer)
	QueryAllocatedBlocks  func(disk uintptr, first, n, chunk uint64, out unsafe.Pointer) uint64
	FreeBlockList         func(list unsafe.Pointer) uint64
}

// Load loads the newest library in dir that loads. log hears what the library says, from any thread, once it is
// initialised.
func Load(dir string, log func(level int, text string)) (*Library, error) {
	files := Find(dir)
	if len(files) == 0 {
		return nil, fmt.Errorf("no libvixDiskLib.so.%d to .%d below %s/lib64", Oldest, Newest, dir)
	}
	var errs []error
	for _, p := range files {
		l, err := load(p, log)
		if err == nil {
			return l, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func load(path string, log func(level int, text string)) (*Library, error) {
	h, err := purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", path, err)
	}
	l := &Library{log: log, inFlight: map[uintptr]func(uint64){}}
	if _, err := fmt.Sscanf(filepath.Base(path), "libvixDiskLib.so.%d", &l.Major); err != nil {
		return nil, fmt.Errorf("%s does not name its version: %w", path, err)
	}
	if l.Path, err = filepath.EvalSymlinks(path); err != nil {
		return nil, err
	}
	var missing []string
	bind := func(required bool, name string, f any) bool {
		at, err := purego.Dlsym(h, "VixDiskLib_"+name)
		if err != nil {
			if required {
				missing = append(missing, "VixDiskLib_"+name)
			}
			return false
		}
		purego.RegisterFunc(f, at)
		return true
	}
	f := &l.f
	for _, s := range []struct {
		name string
		f    any
	}{
		{"InitEx", &f.InitEx}, {"Exit", &f.Exit}, {"ListTransportModes", &f.ListTransportModes},
		{"GetErrorText", &f.GetErrorText}, {"FreeErrorText", &f.FreeErrorText}, {"ConnectEx", &f.ConnectEx}, {"Disconnect", &f.Disconnect},
		{"PrepareForAccess", &f.PrepareForAccess}, {"EndAccess", &f.EndAccess}, {"Cleanup", &f.Cleanup}, {"Open", &f.Open}, {"Close", &f.Close},
		{"GetInfo", &f.GetInfo}, {"FreeInfo", &f.FreeInfo}, {"GetTransportMode", &f.GetTransportMode},
		{"ReadAsync", &f.ReadAsync}, {"WriteAsync", &f.WriteAsync}, {"Wait", &f.Wait}, {"Flush", &f.Flush},
	} {
		bind(true, s.name, s.f)
	}
	// Each of these pairs is there from 6.7 on; half a pair is none.
	l.Allocation = bind(false, "QueryAllocatedBlocks", &f.QueryAllocatedBlocks) && bind(false, "FreeBlockList", &f.FreeBlockList)
	if !bind(false, "AllocateConnectParams", &f.AllocateConnectParams) || !bind(false, "FreeConnectParams", &f.FreeConnectParams) {
		f.AllocateConnectParams, f.FreeConnectParams = nil, nil
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("%s lacks %s: it is no libvixDiskLib of 6.5 or later", l.Path, strings.Join(missing, ", "))
	}
	libc, err := purego.Dlopen("libc.so.6", purego.RTLD_NOW)
	if err != nil {
		return nil, fmt.Errorf("load libc: %w", err)
	}
	at, err := purego.Dlsym(libc, "vsnprintf")
	if err != nil {
		return nil, err
	}
	purego.RegisterFunc(&l.printf, at)
	return l, nil
}

// maxLine bounds a line of the library's log, bytes.
const maxLine = 16 << 10

// logger is a callback void(const char *fmt, va_list): on x86-64 a va_list argument is a pointer.
func (l *Library) logger(level int) uintptr {
	return purego.NewCallback(func(format, args uintptr) {
		buf := make([]byte, maxLine)
		n := l.printf(unsafe.Pointer(&buf[0]), maxLine, format, args)
		l.log(level, strings.TrimRight(string(buf[:max(0, min(int(n), maxLine-1))]), "\r\n"))
	})
}

// Init initialises the library, once per process. The version asked for is 6.5, which every one since understands;
// none may be asked for a newer one than it is.
func (l *Library) Init(dir, config string) error {
	// Callbacks of purego are never freed: these four are all there are.
	l.done = purego.NewCallback(func(data uintptr, code uint64) { l.complete(data, code) })
	a, err := newArena(len(dir) + len(config) + 2)
	if err != nil {
		return err
	}
	var c unsafe.Pointer
	if config != "" {
		c = a.str(config)
	}
	// The strings are never freed: the library may look at them again.
	return l.check("InitEx", l.f.InitEx(6, 5, l.logger(0), l.logger(1), l.logger(2), a.str(dir), c))
}

// Exit ends the library. Every disk and connection must be closed.
func (l *Library) Exit() { l.f.Exit() }

// Modes lists the library's transports, by colons.
func (l *Library) Modes() string { return text(l.f.ListTransportModes()) }

// Error is a code of the library, and the call that gave it.
type Error struct {
	Call string
	Full uint64 // also the upper bits
	Text string
}

func (e *Error) Error() string {
	return fmt.Sprintf("VixDiskLib_%s: %s (code %d)", e.Call, e.Text, Code(e.Full))
}

// check makes an error of a code that is not success.
func (l *Library) check(call string, code uint64) error {
	if Code(code) == 0 {
		return nil
	}
	e := &Error{Call: call, Full: code}
	if p := l.f.GetErrorText(code, 0); p != nil {
		e.Text = text(p)
		l.f.FreeErrorText(p)
	}
	return e
}

// text copies a string of the library's.
func text(p unsafe.Pointer) string {
	const most = 64 << 10
	if p == nil {
		return ""
	}
	n := 0
	for n < most && *(*byte)(unsafe.Add(p, n)) != 0 {
		n++
	}
	return string(unsafe.Slice((*byte)(p), n))
}
