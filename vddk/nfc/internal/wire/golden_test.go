package wire

import (
	"bytes"
	"encoding/hex"
	"reflect"
	"strings"
	"testing"
)

const handle = 0x1122334455667788

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestFramesAreAsDocumented compares encoders with frames made by hand from the protocol's tables, and decodes them
// again.
func TestFramesAreAsDocumented(t *testing.T) {
	read := ReadRequest(handle, 0, 66048, FastLZ)
	fragment := IOFrame{Read: true, Total: 66048, FragOff: 65536, FragLen: 512, WireLen: 512}
	write := IOFrame{Handle: handle, Off: 1048576, Total: 512, FragLen: 512, WireLen: 512}
	session := Session{65536, 4}
	open := OpenRequest{13, NFCDisk, OpenReadOnly}
	ddb := DDB{handle, 11}
	query := Query{handle, 65536, 0, 16}
	for _, c := range []struct {
		name    string
		header  Header
		payload []byte
		head    string
		body    string
		want    any
		parse   func([]byte) (any, error)
	}{
		{"OPEN_SESSION", Header{OpenSession, 16, 0}, AppendSession(nil, session),
			"7ada00a1 02000000 10000000 00000000", "00000000 00000100 04000000 00000000",
			session, func(b []byte) (any, error) { return ParseSession(b) }},
		{"SET_SOCK_OPTS", Header{SetSockOpts, 12, 1}, make([]byte, SockOptsSize),
			"7ada00a1 09000000 0c000000 01000000", "00000000 00000000 00000000", nil, nil},
		{"SET_RES_POOL", Header{SetResPool, 4, 2}, []byte{1, 0, 0, 0},
			"7ada00a1 16000000 04000000 02000000", "01000000", nil, nil},
		{"OPEN_FILE", Header{OpenFile, 60, 3}, AppendOpen(nil, open),
			"7ada00a1 04000000 3c000000 03000000",
			"0d000000 00000000 00000000 00000000 02000000 1e000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000",
			open, func(b []byte) (any, error) { return ParseOpen(b) }},
		{"IO read", Header{IO, 44, 4}, AppendIO(nil, read),
			"7ada00a1 07000000 2c000000 04000000",
			"88776655 44332211 01000000 02000000 00000000 00000000 00020100 00000000 00020100 00020100 00000000",
			read, func(b []byte) (any, error) { return ParseIO(b) }},
		{"IO fragment", Header{IO, 44, 4}, AppendIO(nil, fragment),
			"7ada00a1 07000000 2c000000 04000000",
			"00000000 00000000 01000000 00000000 00000000 00000000 00020100 00000100 00020000 00020000 00000000",
			fragment, func(b []byte) (any, error) { return ParseIO(b) }},
		{"IO write", Header{IO, 44, 5}, AppendIO(nil, write),
			"7ada00a1 07000000 2c000000 05000000",
			"88776655 44332211 00000000 00000000 00001000 00000000 00020000 00000000 00020000 00020000 00000000",
			write, func(b []byte) (any, error) { return ParseIO(b) }},
		{"DDB_GET", Header{DDBGet, 16, 6}, AppendDDBRequest(nil, ddb),
			"7ada00a1 0b000000 10000000 06000000", "88776655 44332211 0b000000 00000000",
			ddb, func(b []byte) (any, error) { return ParseDDBRequest(b) }},
		{"DDB_GET reply", Header{DDBGet, 16, 6}, AppendDDBReply(nil, DDB{Len: 8}),
			"7ada00a1 0b000000 10000000 06000000", "00000000 00000000 00000000 08000000",
			DDB{Len: 8}, func(b []byte) (any, error) { return ParseDDBReply(b) }},
		{"QUERY_ALLOCATED_BLOCKS", Header{QueryAllocated, 48, 7}, AppendQuery(nil, query),
			"7ada00a1 0d000000 30000000 07000000",
			"88776655 44332211 00000000 00000000 00000100 00000000 00000000 00000000 10000000 00000000 00000000 00000000",
			query, func(b []byte) (any, error) { return ParseQuery(b) }},
		{"CLOSE_FILE", Header{CloseFile, 8, 8}, unhex(t, "8877665544332211"),
			"7ada00a1 05000000 08000000 08000000", "88776655 44332211", nil, nil},
		{"CLOSE_SESSION", Header{CloseSession, 4, 9}, make([]byte, 4),
			"7ada00a1 03000000 04000000 09000000", "00000000", nil, nil},
		{"ERROR", Header{Error, 16, 4}, AppendFailure(nil, Failure{11, 5}),
			"7ada00a1 01000000 10000000 04000000", "0b000000 00000000 00000000 05000000",
			Failure{11, 5}, func(b []byte) (any, error) { return ParseFailure(b) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			head := unhex(t, c.head)
			if got := AppendHeader(nil, c.header); !bytes.Equal(got, head) {
				t.Errorf("header is %x, not %x", got, head)
			}
			if got, err := ParseHeader(head); err != nil || got != c.header {
				t.Errorf("header reads as %+v (%v)", got, err)
			}
			body := unhex(t, c.body)
			if !bytes.Equal(c.payload, body) {
				t.Errorf("payload is %x, not %x", c.payload, body)
			}
			if c.parse == nil {
				return
			}
			if got, err := c.parse(body); err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("payload reads as %+v (%v), not %+v", got, err, c.want)
			}
			if _, err := c.parse(body[:len(body)-1]); err == nil {
				t.Error("a payload cut off is accepted")
			}
		})
	}
}

func TestOpenReplyIsAsDocumented(t *testing.T) {
	b := make([]byte, 60)
	le.PutUint64(b[8:], handle)
	le.PutUint32(b[16:], 2)
	le.PutUint32(b[20:], 0x1e)
	le.PutUint64(b[28:], 5<<30+512)
	for i, v := range []uint32{512, 652, 255, 63} {
		le.PutUint32(b[36+4*i:], v)
	}
	want := File{Handle: handle, FileType: 2, Flags: 0x1e, Capacity: 5<<30 + 512, SectorSize: 512, Cylinders: 652, Heads: 255, Sectors: 63}
	if got, err := ParseFile(b); err != nil || got != want {
		t.Errorf("reads as %+v (%v)", got, err)
	}
	if got := AppendFile(nil, want); !bytes.Equal(got, b) {
		t.Errorf("is %x, not %x", got, b)
	}
}

func TestMessagesAreAsDocumented(t *testing.T) {
	at := func(m *Message, off int) uint32 { return le.Uint32(m[off:]) }
	if m := NewClientRandom(PlainTag); at(m, 0) != 43 || !bytes.HasPrefix(m[4:], []byte("PlainText\x00")) || len(m) != 264 {
		t.Errorf("CLIENTRANDOM is %x", m[:32])
	}
	if m := NewMessage(Version, 11); at(m, 0) != 51 || at(m, 4) != 11 || at(m, 8) != 0 {
		t.Errorf("VERSION is %x", m[:32])
	}
	if m := NewFileOpStatus(); at(m, 0) != 36 || at(m, 16) != 1 || at(m, 12) != 0 {
		t.Errorf("FILEOP_STATUS is %x", m[:32])
	}
	if m := NewMessage(ConnectionData, 4, 7); at(m, 0) != 54 || m.Arg(0) != 4 || m.Arg(1) != 7 {
		t.Errorf("CONNECTION_DATA is %x", m[:32])
	}
	if m := NewMessage(Features, AllFeatures); at(m, 0) != 55 || at(m, 4) != 3 {
		t.Errorf("SESSION_FEATURES is %x", m[:32])
	}
}

func TestBitmapsArePadded(t *testing.T) {
	for n, want := range map[uint64]int{0: 0, 1: 4, 32: 4, 33: 8, 512 << 10: 64 << 10} {
		if got := BitmapSize(n); got != want {
			t.Errorf("%d chunks: %d bytes, not %d", n, got, want)
		}
	}
}

func TestFramesOutOfBounds(t *testing.T) {
	good := AppendIO(nil, IOFrame{Read: true, Total: 1024, FragLen: 512, WireLen: 512})
	for name, change := range map[string]func([]byte){
		"kind":        func(b []byte) { b[8] = 2 },
		"compression": func(b []byte) { b[12] = 4 },
		"total":       func(b []byte) { b[27] = 0xff },
		"beyond":      func(b []byte) { b[28], b[29] = 1, 2 },
	} {
		b := bytes.Clone(good)
		change(b)
		if f, err := ParseIO(b); err == nil {
			t.Errorf("%s: %+v is accepted", name, f)
		}
	}
	if _, err := ParseHeader(AppendHeader(nil, Header{IO, MaxPayload + 1, 0})); err == nil {
		t.Error("an endless payload is accepted")
	}
	if _, err := ParseFailure(AppendFailure(nil, Failure{1, MaxText + 1})); err == nil {
		t.Error("an endless text is accepted")
	}
	if _, err := ParseQuery(AppendQuery(nil, Query{Chunks: MaxQueryChunks + 1})); err == nil {
		t.Error("an endless bitmap is accepted")
	}
	if _, err := ParseOpen(AppendOpen(nil, OpenRequest{PathLen: MaxPath + 1})); err == nil {
		t.Error("an endless path is accepted")
	}
	if _, err := ParseDDBReply(AppendDDBReply(nil, DDB{Len: MaxDDB + 1})); err == nil {
		t.Error("an endless value is accepted")
	}
}
