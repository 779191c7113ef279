package wire

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"sync"
	"testing"
)

func TestFramesComeBack(t *testing.T) {
	var b []byte
	want := []Frame{{Read, 7, Transfer{1, 2, 3, 4}.Encode()}, {Bye, 8, []byte{}}, {Reply, 9, EncodeReply(36, Failure{"VixDiskLib_Open", "lost"})}, {Log, 0, EncodeLog(LevelWarn, "text")}}
	for _, f := range want {
		b = f.Append(b)
	}
	r := bytes.NewReader(b)
	for _, w := range want {
		if got, err := Next(r); err != nil || !reflect.DeepEqual(got, w) {
			t.Errorf("%+v, %v instead of %+v", got, err, w)
		}
	}
	if _, err := Next(r); err != io.EOF {
		t.Error(err)
	}
	for n := 1; n < headSize+24; n++ { // cut anywhere in the first frame
		if _, err := Next(bytes.NewReader(b[:n])); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
}

// slow is a writer that others overtake.
type slow struct {
	bytes.Buffer
	writes int
	begun  chan struct{} // the first write is under way
	go_    chan struct{} // and may end
}

func (s *slow) Write(p []byte) (int, error) {
	if s.writes++; s.writes == 1 {
		close(s.begun)
		<-s.go_
	}
	return s.Buffer.Write(p)
}

func TestFramesThatWaitGoTogether(t *testing.T) {
	s := &slow{begun: make(chan struct{}), go_: make(chan struct{})}
	w := Writer{W: s}
	var first sync.WaitGroup
	first.Go(func() { w.Send(Frame{Bye, 1, nil}) })
	<-s.begun
	for n := uint64(2); n <= 50; n++ {
		w.Send(Frame{Reply, n, EncodeReply(n, nil)})
	}
	close(s.go_)
	first.Wait()
	w.Send(Frame{Bye, 51, nil})
	if s.writes != 3 {
		t.Errorf("%d writes, not one for the first, one for those that waited, one for the last", s.writes)
	}
	for n := uint64(1); n <= 51; n++ {
		if f, err := Next(&s.Buffer); err != nil || f.Number != n {
			t.Fatalf("frame %d is %+v, %v", n, f, err)
		}
	}
}

func TestTransfersStayInTheMemory(t *testing.T) {
	const most = PieceBytes / SectorSize
	for _, bad := range []Transfer{{Disks, 1, 0, 0}, {0, 0, 0, 0}, {0, most + 1, 0, 0}, {0, 1, 0, 1 << 60}, {0, 1, 1, 0}, {0, 1, MemorySize, 0},
		{0, 2, MemorySize - SectorSize, 0}, {0, 1, -SectorSize & (1<<64 - 1), 0}} {
		if _, err := ParseTransfer(bad.Encode()); !errors.Is(err, ErrFrame) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	for _, good := range []Transfer{{Disks - 1, 1, MemorySize - SectorSize, 0}, {0, most, 512, 1 << 54}} {
		if got, err := ParseTransfer(good.Encode()); err != nil || got != good {
			t.Errorf("%+v: %+v, %v", good, got, err)
		}
	}
}

func TestBlocksStayInTheirRange(t *testing.T) {
	for _, bad := range [][][2]uint64{{{99, 1}}, {{100, 0}}, {{100, 101}}, {{150, 10}, {155, 1}}, {{150, 10}, {120, 1}}, {{199, 2}}, {{100, 1 << 63}}, {{1<<64 - 1, 2}}} {
		if got, err := ParseBlocks(AppendBlocks(nil, bad), 100, 100); !errors.Is(err, ErrFrame) {
			t.Errorf("%v: %v, %v", bad, got, err)
		}
	}
	good := [][2]uint64{{100, 1}, {101, 9}, {199, 1}}
	if got, err := ParseBlocks(AppendBlocks(nil, good), 100, 100); err != nil || !reflect.DeepEqual(got, good) {
		t.Errorf("%v, %v", got, err)
	}
}

// FuzzNext holds the reader of frames, and the parsers of all bodies, to what they promise.
func FuzzNext(f *testing.F) {
	f.Add(Frame{Read, 1, Transfer{1, 1, 1, 1}.Encode()}.Append(nil))
	f.Add(Frame{Open, 2, Encode(Opening{1, "[a] b", 4})}.Append(nil))
	f.Add(Frame{Connect, 2, Encode(Connection{Server: "a", Password: "b"})}.Append(nil))
	f.Add(Frame{Blocks, 3, Encode(Range{1, 128, 128})}.Append(nil))
	f.Add(Frame{Reply, 3, AppendBlocks(EncodeReply(0, nil), [][2]uint64{{0, 128}})}.Append(nil))
	f.Add(Frame{Log, 0, EncodeLog(2, "panic")}.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		for {
			before := r.Len()
			fr, err := Next(r)
			if err != nil {
				if err != io.EOF && !errors.Is(err, ErrFrame) && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatal(err)
				}
				return
			}
			if again := fr.Append(nil); !bytes.Equal(again, b[len(b)-before:len(b)-r.Len()]) {
				t.Fatal("a frame is not what was read")
			}
			if tr, err := ParseTransfer(fr.Body); err == nil {
				if !bytes.Equal(tr.Encode(), fr.Body) || tr.Disk >= Disks || tr.Sectors*SectorSize > PieceBytes || tr.At+uint64(tr.Sectors)*SectorSize > MemorySize {
					t.Fatalf("%+v", tr)
				}
			}
			if _, result, err := ParseReply(fr.Body); err == nil {
				if pairs, err := ParseBlocks(result, 1000, 1<<20); err == nil {
					at := uint64(1000)
					for _, p := range pairs {
						if p[0] < at || p[1] == 0 || p[0]+p[1] > 1000+1<<20 {
							t.Fatalf("%v", pairs)
						}
						at = p[0] + p[1]
					}
				}
				_, _ = Decode[Failure](result)
				_, _ = Decode[Opened](result)
				_, _ = Decode[Loaded](result)
			}
			_, _, _ = ParseLog(fr.Body)
			_, _ = Decode[Library](fr.Body)
			_, _ = Decode[Connection](fr.Body)
			_, _ = Decode[Opening](fr.Body)
			_, _ = Decode[One](fr.Body)
			if g, err := Decode[Range](fr.Body); err == nil && g.Check() == nil && (g.Sectors > MaxChunks*ChunkSize/SectorSize || g.Disk >= Disks) {
				t.Fatalf("%+v", g)
			}
		}
	})
}
