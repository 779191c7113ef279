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

// handle is that of connection 1.
const handle = 0x5600_0000_1000

func request(t wire.Type, payload []byte, extra string) []byte {
	b := wire.AppendHeader(nil, wire.Header{Type: t, Size: uint32(len(payload)), ID: 2})
	return append(append(b, payload...), extra...)
}

// opened opens a session, and in it disk a.
func opened(flags uint32) []byte {
	return append(request(wire.OpenSession, wire.AppendSession(nil, wire.Session{BufSize: 64 << 10, BufCount: 1}), ""),
		request(wire.OpenFile, wire.AppendOpen(nil, wire.OpenRequest{PathLen: 1, FileType: 2, Flags: flags}), "a")...)
}

// unsealed serves connection 1, on which the handshake is over, to a client that may write to disk a, of 1 MiB.
type unsealed struct {
	*Server
	store  *Memory
	client net.Conn
	done   chan error // what the session ends with
}

func serve(t *testing.T) unsealed {
	m := &Memory{}
	m.Add("a", 1<<20)
	here, there := net.Pipe()
	u := unsealed{&Server{cfg: Config{Store: m}}, m, there, make(chan error, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	c := &conn{server: u.Server, serial: 1, raw: here, ctx: ctx, cancel: cancel, grant: Grant{Write: true}}
	go func() {
		defer here.Close()
		u.done <- newSession(c, &channel{Conn: here}).run()
	}()
	return u
}

// The double refuses what hosts refuse, whatever our client asks for.
func TestHostsRefuse(t *testing.T) {
	fragment := func(at, n uint32) []byte {
		return request(wire.IO, wire.AppendIO(nil, wire.IOFrame{Handle: handle, Total: 1024, FragOff: at, FragLen: n, WireLen: n}), string(make([]byte, n)))
	}
	query := func(start, size, chunks uint64) []byte {
		return request(wire.QueryAllocated, wire.AppendQuery(nil, wire.Query{Handle: handle, Start: start, ChunkSize: size, Chunks: chunks}), "")
	}
	for name, c := range map[string]struct {
		flags uint32
		asks  []byte
		code  uint64 // of ERROR; 0: the session ends
	}{
		"writing through a handle for reading": {wire.OpenReadOnly, fragment(0, 1024), wire.CodePermission},
		"a fragment that is missing":           {wire.OpenReadWrite, append(fragment(0, 512), fragment(1023, 1)...), 0},
		"a fragment that comes twice":          {wire.OpenReadWrite, append(fragment(0, 512), fragment(0, 512)...), 0},
		"blocks from within a chunk":           {wire.OpenReadOnly, query(512, 64<<10, 1), 22},
		"blocks of small chunks":               {wire.OpenReadOnly, query(0, 32<<10, 1), 22},
		"blocks beyond the end":                {wire.OpenReadOnly, query(0, 64<<10, 17), 22},
		"reading beyond the end":               {wire.OpenReadOnly, request(wire.IO, wire.AppendIO(nil, wire.ReadRequest(handle, 1<<20, 512, wire.None)), ""), 22},
		"another handle":                       {wire.OpenReadOnly, request(wire.IO, wire.AppendIO(nil, wire.ReadRequest(handle+1, 0, 512, wire.None)), ""), 9},
	} {
		t.Run(name, func(t *testing.T) {
			u := serve(t)
			go func() {
				u.client.Write(opened(c.flags))
				u.client.Write(c.asks)
			}()
			var got uint64
			for { // answers, until there is an ERROR or no more
				var head [wire.HeaderSize]byte
				if _, err := io.ReadFull(u.client, head[:]); err != nil {
					break
				}
				h, err := wire.ParseHeader(head[:])
				if err != nil {
					t.Fatal(err)
				}
				p := make([]byte, h.Size)
				if _, err := io.ReadFull(u.client, p); err != nil {
					t.Fatal(err)
				}
				if h.Type == wire.Error {
					f, err := wire.ParseFailure(p)
					if err != nil {
						t.Fatal(err)
					}
					got = f.Code
					break
				}
			}
			u.client.Close()
			if err := <-u.done; got != c.code || c.code == 0 && err == nil {
				t.Errorf("it is refused with %d, not %d; the session ends with %v", got, c.code, err)
			}
		})
	}
}

// Hosts read one message of the handshake in a TLS record, and lose what else is in it.
func TestOneMessageInARecord(t *testing.T) {
	for n, good := range map[int]bool{264: true, 528: false, 100: false} {
		here, there := net.Pipe()
		go there.Write(make([]byte, n)) // arrives in one piece, as a record does
		var m wire.Message
		if err := (&conn{}).readMessage(&channel{Conn: here, sealed: true}, m[:]); (err == nil) != good {
			t.Errorf("a record of %d bytes: %v", n, err)
		}
		here.Close()
	}
}

// FuzzRequests lets a client ask anything: the session must end with the connection, and leave no file open, no
// memory taken and no goroutine behind.
func FuzzRequests(f *testing.F) {
	open := opened(wire.OpenReadWrite)
	f.Add(append(open[:len(open):len(open)], request(wire.IO, wire.AppendIO(nil, wire.ReadRequest(handle, 0, 1024, wire.FastLZ)), "")...))
	f.Add(append(open[:len(open):len(open)], request(wire.IO, wire.AppendIO(nil, wire.IOFrame{Handle: handle, Total: 4, FragLen: 4, WireLen: 4}), "data")...))
	f.Add(append(open[:len(open):len(open)], request(wire.QueryAllocated, wire.AppendQuery(nil, wire.Query{Handle: handle, ChunkSize: 64 << 10, Chunks: 1}), "")...))
	f.Add(append(open[:len(open):len(open)], request(wire.DDBGet, wire.AppendDDBRequest(nil, wire.DDB{Handle: handle, Len: 4}), "uuid")...))
	f.Add(append(open[:len(open):len(open)], request(wire.CloseFile, []byte{0, 0x10, 0, 0, 0, 0x56, 0, 0}, "")...))
	f.Fuzz(func(t *testing.T, requests []byte) {
		u := serve(t)
		go io.Copy(io.Discard, u.client)
		u.client.Write(requests)
		u.client.Close()
		<-u.done
		if n := u.openFiles.Load(); n != 0 {
			t.Errorf("%d files open", n)
		}
		if g, err := u.store.Open(t.Context(), OpenRequest{Path: "a", Writable: true}); err != nil {
			t.Errorf("the disk stays locked: %v", err)
		} else {
			g.Close()
		}
	})
}
