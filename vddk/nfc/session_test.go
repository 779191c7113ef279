package nfc

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/nfc/internal/wire"
)

// FuzzReplies lets a host answer anything to a read, a call and a write: every operation must end, nothing may be
// written outside its buffer, and no goroutine may stay.
func FuzzReplies(f *testing.F) {
	frame := func(t wire.Type, id uint32, payload, extra []byte) []byte {
		b := wire.AppendHeader(nil, wire.Header{Type: t, Size: uint32(len(payload)), ID: id})
		return append(append(b, payload...), extra...)
	}
	data := bytes.Repeat([]byte{1}, 512)
	good := frame(wire.IO, 0, wire.AppendIO(nil, wire.IOFrame{Read: true, Total: 1024, FragLen: 512, WireLen: 512}), data)
	good = append(good, frame(wire.IO, 0, wire.AppendIO(nil, wire.IOFrame{Read: true, Total: 1024, FragOff: 512, FragLen: 512, WireLen: 512}), data)...)
	f.Add(good)
	f.Add(append(bytes.Clone(good), frame(wire.DDBGet, 1, wire.AppendDDBReply(nil, wire.DDB{Len: 4}), []byte("uuid"))...))
	f.Add(frame(wire.Error, 0, wire.AppendFailure(nil, wire.Failure{Code: 5, TextLen: 4}), []byte("text")))
	f.Add(frame(wire.IO, 2, wire.AppendIO(nil, wire.IOFrame{Off: 4096, Total: 512}), nil))
	f.Add(frame(wire.IO, 0, wire.AppendIO(nil, wire.IOFrame{Read: true, Compression: wire.Skipz, Total: 1024, FragLen: 1024, WireLen: 8}), []byte{0, 4, 0, 0, 0, 0, 0, 0}))
	f.Fuzz(func(t *testing.T, answer []byte) {
		here, there := net.Pipe()
		s := newSession(&line{Conn: here, raw: here}, &Options{IOTimeout: 10 * time.Second}, &counters{})
		s.buffers = least()
		go io.Copy(io.Discard, there)
		guarded := bytes.Repeat([]byte{0xee}, 1024+64)
		read, err := s.get(guarded[:1024:1024], 0, wire.Skipz, nil)
		if err != nil {
			t.Fatal(err)
		}
		called := make(chan error)
		go func() {
			_, _, err := s.call(wire.DDBGet, make([]byte, wire.DDBSize), nil)
			called <- err
		}()
		put, err := s.put(make([]byte, 512), 4096, wire.None, nil)
		if err == nil {
			go func() {
				there.Write(answer)
				there.Close()
			}()
			_ = s.wait(read)
			_ = s.wait(put)
		}
		<-called
		s.fail(vddk.ErrClosed)
		s.reader.Wait()
		there.Close()
		if !bytes.Equal(guarded[1024:], bytes.Repeat([]byte{0xee}, 64)) {
			t.Error("written behind the buffer")
		}
	})
}

func TestFailuresAreClassified(t *testing.T) {
	for text, want := range map[string]error{
		"Failed to allocate the requested 24117272 bytes":            vddk.ErrHostMemory,
		"DiskLib error 16392: Failed to lock the file":               vddk.ErrLocked,
		"Thin/TBZ/Sparse disks cannot be opened in multiwriter mode": vddk.ErrLocked,
		"server permission check failed":                             vddk.ErrPermission,
		"The system cannot find the file specified":                  vddk.ErrNotFound,
		"I/O error": nil,
	} {
		f := newFailure(1, text, "")
		for _, kind := range []error{vddk.ErrHostMemory, vddk.ErrLocked, vddk.ErrPermission, vddk.ErrNotFound} {
			if got := errors.Is(f, kind); got != (kind == want) {
				t.Errorf("%q is %v: %v", text, kind, got)
			}
		}
	}
	if f := newFailure(11, "no", ""); !errors.Is(f, vddk.ErrPermission) {
		t.Errorf("code 11 is %v", f)
	}
	if f := newFailure(1, "session s3cret is unknown", "s3cret"); strings.Contains(f.Error(), "s3cret") {
		t.Errorf("the host's text gives the session away: %v", f)
	}
}

func TestFragmentsAreCountedOnce(t *testing.T) {
	var o op
	for _, c := range []struct {
		from, to int
		ok       bool
	}{{10, 20, true}, {30, 40, true}, {0, 10, true}, {15, 16, false}, {0, 50, false}, {25, 31, false}, {39, 41, false}, {20, 30, true}, {40, 41, true}, {40, 41, false}} {
		if got := o.take(c.from, c.to); got != c.ok {
			t.Errorf("[%d,%d) is taken: %v; %v", c.from, c.to, got, o.spans)
		}
	}
	if len(o.spans) != 1 || o.spans[0] != (span{0, 41}) {
		t.Errorf("%v", o.spans)
	}
}
