//go:build linux && amd64

package helper

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmkeep/vmkeep/vddk/vixdisklib/internal/library"
	"github.com/vmkeep/vmkeep/vddk/vixdisklib/internal/wire"
)

// mainQueue is how many requests may wait for the main thread, so that a long one does not hold up transfers, which come
// after them through the same socket: of each disk number an opening and, when nobody waits for it any more, a closing;
// and a few of the connection.
const mainQueue = 2*wire.Disks + 8

// server is the state of the process. All but disks and the socket belongs to the main thread.
type server struct {
	socket *os.File
	out    wire.Writer // to socket
	memory []byte
	main   chan func() // work for the main thread

	grace     atomic.Int64 // nanoseconds that the library may take to let go of everything once the client is gone
	lib       *library.Library
	conn      library.Connection
	connected bool
	params    []*library.Params
	prepared  map[string]*library.Params // by identity

	mu    sync.Mutex
	disks [wire.Disks]*disk
}

// Main serves one client over the inherited descriptors of package wire until it goes.
func Main() error {
	// The library wants one thread for everything but transfers, and looks back at it from its own.
	runtime.LockOSThread()
	// The other end of stderr and of the socket may be gone: that must not end the process before it cleaned up.
	signal.Ignore(syscall.SIGPIPE, syscall.SIGHUP)
	// Memory holds passwords; a crash of the library must not put them on a disk.
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core files: %w", err)
	}
	for _, fd := range []int{wire.SocketFile, wire.MemoryFile, wire.LockFile} {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil && fd != wire.LockFile {
			return errors.New("this program is started by vmkeep-plugin, not by hand: it has no client")
		}
	}
	memory, err := unix.Mmap(wire.MemoryFile, 0, wire.MemorySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map the memory shared with the client: %w", err)
	}
	if err := unix.SetNonblock(wire.SocketFile, true); err != nil {
		return err
	}
	s := &server{socket: os.NewFile(wire.SocketFile, "client"), memory: memory, main: make(chan func(), mainQueue), prepared: map[string]*library.Params{}}
	s.out.W = s.socket
	ended := make(chan error, 1)
	go func() {
		err := s.listen()
		// Also when the main thread is in a call that does not return, and nobody is left to kill this process.
		time.AfterFunc(time.Duration(s.grace.Load()), func() { os.Exit(4) })
		ended <- err
	}()
	for {
		select {
		case f := <-s.main:
			f()
		case err := <-ended:
			return errors.Join(err, s.end())
		}
	}
}

// listen takes requests until the client goes.
func (s *server) listen() error {
	r := bufio.NewReader(s.socket)
	for {
		f, err := wire.Next(r)
		if err == nil && f.Kind == wire.Bye {
			return nil
		}
		if err != nil {
			if err == io.EOF || errors.Is(err, syscall.ECONNRESET) {
				return nil // the client died; it needs no message
			}
			return err
		}
		if err := s.dispatch(f); err != nil {
			return fmt.Errorf("request %s: %w", f.Kind, err)
		}
	}
}

// answer replies with a result, or with what went wrong.
func (s *server) answer(number uint64, result any, err error) {
	body := wire.EncodeReply(0, result)
	var e *library.Error
	switch {
	case errors.As(err, &e):
		body = wire.EncodeReply(e.Full, wire.Failure{Call: "VixDiskLib_" + e.Call, Text: e.Text})
	case err != nil:
		body = wire.EncodeReply(wire.CodeHelper, wire.Failure{Text: err.Error()})
	}
	s.out.Send(wire.Frame{Kind: wire.Reply, Number: number, Body: body})
}

// hear passes on what the library logs. What it says of the customer experience program is no problem of anybody's.
func (s *server) hear(level int, text string) {
	l := uint8(level)
	if l == wire.LevelWarn && strings.Contains(text, "CEIP") {
		l = wire.LevelInfo
	}
	s.out.Send(wire.Frame{Kind: wire.Log, Body: wire.EncodeLog(l, text)})
}

// onMain has the main thread work on a request.
func (s *server) onMain(number uint64, f func() (any, error)) {
	s.main <- func() {
		v, err := f()
		s.answer(number, v, err)
	}
}

// request decodes a request for the main thread and has it done.
func request[T any](s *server, f wire.Frame, do func(T) (any, error)) error {
	v, err := wire.Decode[T](f.Body)
	if err != nil {
		return err
	}
	s.onMain(f.Number, func() (any, error) {
		if s.lib == nil && f.Kind != wire.Init {
			return nil, errors.New("the library is not loaded")
		}
		return do(v)
	})
	return nil
}

// dispatch gives a request to the thread whose work it is. An error is a client that breaks the protocol.
func (s *server) dispatch(f wire.Frame) error {
	switch f.Kind {
	case wire.Init:
		return request(s, f, s.init)
	case wire.Connect:
		return request(s, f, s.connect)
	case wire.Open:
		return request(s, f, s.open)
	case wire.Close:
		return request(s, f, s.close)
	case wire.Prepare:
		return request(s, f, s.prepare)
	case wire.EndAccess:
		return request(s, f, s.endAccess)
	case wire.Cleanup:
		return request(s, f, s.cleanup)
	case wire.Read, wire.Write:
		t, err := wire.ParseTransfer(f.Body)
		if err != nil {
			return err
		}
		return s.onDisk(t.Disk, f.Number, func(d *disk) { d.transfer(f, t) })
	case wire.Flush:
		o, err := wire.Decode[wire.One](f.Body)
		if err != nil {
			return err
		}
		return s.onDisk(o.Disk, f.Number, func(d *disk) { d.flush(f.Number) })
	case wire.Blocks:
		r, err := wire.Decode[wire.Range](f.Body)
		if err == nil {
			err = r.Check()
		}
		if err != nil {
			return err
		}
		return s.onDisk(r.Disk, f.Number, func(d *disk) { d.blocks(f.Number, r) })
	}
	return wire.ErrFrame
}

func (s *server) init(l wire.Library) (any, error) {
	if s.lib != nil {
		return nil, errors.New("the library is loaded already")
	}
	s.grace.Store(int64(l.Grace))
	lib, err := library.Load(l.Dir, s.hear)
	if err != nil {
		return nil, err
	}
	if err := lib.Init(l.Dir, l.Config); err != nil {
		return nil, err
	}
	s.lib = lib
	return wire.Loaded{Path: lib.Path, Major: lib.Major, Modes: lib.Modes(), Allocation: lib.Allocation}, nil
}

func (s *server) newParams(c wire.Connection) (*library.Params, error) {
	return s.lib.NewParams(library.Login{Server: c.Server, Thumbprint: c.Thumbprint, Port: c.Port, NFCPort: c.NFCPort,
		User: c.User, Password: c.Password, Cookie: c.Cookie, VM: c.VM})
}

func (s *server) connect(c wire.Connection) (any, error) {
	if s.connected {
		return nil, errors.New("there is a connection already")
	}
	p, err := s.newParams(c)
	if err != nil {
		return nil, err
	}
	s.params = append(s.params, p)
	s.conn, err = s.lib.Connect(p, library.Access{ReadOnly: c.ReadOnly, Snapshot: c.Snapshot, Modes: c.Modes})
	s.connected = err == nil
	return nil, err
}

func (s *server) prepare(c wire.Connection) (any, error) {
	p, err := s.newParams(c)
	if err != nil {
		return nil, err
	}
	s.params = append(s.params, p)
	if err := s.lib.Prepare(p, c.Identity); err != nil {
		return nil, err
	}
	s.prepared[c.Identity] = p
	return nil, nil
}

func (s *server) endAccess(c wire.Connection) (any, error) {
	p := s.prepared[c.Identity]
	if p == nil { // prepared by another process, which is gone
		var err error
		if p, err = s.newParams(c); err != nil {
			return nil, err
		}
		s.params = append(s.params, p)
	}
	delete(s.prepared, c.Identity)
	return nil, s.lib.EndAccess(p, c.Identity)
}

func (s *server) cleanup(c wire.Connection) (any, error) {
	if s.disks != [wire.Disks]*disk{} { // only this thread changes it
		return nil, errors.New("disks are open")
	}
	p, err := s.newParams(c)
	if err != nil {
		return nil, err
	}
	s.params = append(s.params, p)
	if err := s.disconnect(); err != nil {
		return nil, err
	}
	cleaned, remaining, err := s.lib.Cleanup(p)
	return wire.Leftovers{Cleaned: cleaned, Remaining: remaining}, err
}

// disconnect ends the connection, if there is one. No disk is open.
func (s *server) disconnect() error {
	if !s.connected {
		return nil
	}
	s.connected = false
	return s.lib.Disconnect(s.conn)
}

// end gives everything back, in the library's order.
func (s *server) end() error {
	if s.lib == nil {
		return nil
	}
	var errs []error
	for i := range s.disks {
		if s.disks[i] != nil {
			_, err := s.close(wire.One{Disk: uint32(i)})
			errs = append(errs, err)
		}
	}
	errs = append(errs, s.disconnect())
	for identity, p := range s.prepared {
		errs = append(errs, s.lib.EndAccess(p, identity))
	}
	for _, p := range s.params {
		errs = append(errs, p.Free())
	}
	err := errors.Join(errs...)
	if err == nil {
		s.lib.Exit() // with a leaked handle it would crash; then the end of the process is the better end
	}
	return err
}
