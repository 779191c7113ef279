package nfctest

import (
	"context"
	"io"
	"net"
	"testing"

	"github.com/vmkeep/vmkeep/vddk/nfc/internal/wire"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// FuzzRequests lets a client ask anything: the session must end with the connection, and leave no file open, no
// memory taken and no goroutine behind.
func FuzzRequests(f *testing.F) {
	frame := func(t wire.Type, id uint32, payload []byte, extra string) []byte {
		b := wire.AppendHeader(nil, wire.Header{Type: t, Size: uint32(len(payload)), ID: id})
		return append(append(b, payload...), extra...)
	}
	const handle = 0x5600_0000_1000 // of connection 1
	open := append(frame(wire.OpenSession, 0, wire.AppendSession(nil, wire.Session{BufSize: 64 << 10, BufCount: 1}), ""),
		frame(wire.OpenFile, 1, wire.AppendOpen(nil, wire.OpenRequest{PathLen: 1, FileType: 2, Flags: wire.OpenReadWrite}), "a")...)
	f.Add(append(open[:len(open):len(open)], frame(wire.IO, 2, wire.AppendIO(nil, wire.ReadRequest(handle, 0, 1024, wire.FastLZ)), "")...))
	f.Add(append(open[:len(open):len(open)], frame(wire.IO, 2, wire.AppendIO(nil, wire.IOFrame{Handle: handle, Total: 4, FragLen: 4, WireLen: 4}), "data")...))
	f.Add(append(open[:len(open):len(open)], frame(wire.QueryAllocated, 2, wire.AppendQuery(nil, wire.Query{Handle: handle, ChunkSize: 64 << 10, Chunks: 1}), "")...))
	f.Add(append(open[:len(open):len(open)], frame(wire.DDBGet, 2, wire.AppendDDBRequest(nil, wire.DDB{Handle: handle, Len: 4}), "uuid")...))
	f.Add(append(open[:len(open):len(open)], frame(wire.CloseFile, 2, []byte{0, 0x10, 0, 0, 0, 0x56, 0, 0}, "")...))
	f.Fuzz(func(t *testing.T, requests []byte) {
		m := &Memory{}
		m.Add("a", 1<<20)
		s := &Server{cfg: Config{Store: m}}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		here, there := net.Pipe()
		c := &conn{server: s, serial: 1, raw: here, ctx: ctx, cancel: cancel, grant: Grant{Write: true}}
		done := make(chan error)
		go func() { done <- newSession(c, &channel{Conn: here}).run() }()
		go io.Copy(io.Discard, there)
		there.Write(requests)
		there.Close()
		<-done
		here.Close()
		if n := s.openFiles.Load(); n != 0 {
			t.Errorf("%d files open", n)
		}
		if g, err := m.Open(ctx, OpenRequest{Path: "a", Writable: true}); err != nil {
			t.Errorf("the disk stays locked: %v", err)
		} else {
			g.Close()
		}
	})
}
