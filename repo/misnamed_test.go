package repo

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest"
	"github.com/vmkeep/vmkeep/repo/internal/index"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// A chunk whose seal is right and whose name is wrong shows by its hash alone.

// misnamed stores a pack of chunks of all lengths, every fourth of which has a name that is not its hash. Some are compressed.
func misnamed(t *testing.T, r *Repository) (ids []restic.ID, content map[restic.ID][]byte) {
	t.Helper()
	s := r.start(t.Context(), index.New())
	defer s.stop()
	content = make(map[restic.ID][]byte)
	for i := range 40 {
		data := noise(uint64(i), i*i*i%9000+i)
		if i%3 == 0 {
			data = data[:len(data)/2] // which does not compress
		}
		id := restic.Hash(data)
		if i%4 == 0 {
			id[0]++
		} else {
			content[id] = bytes.Clone(data)
		}
		ids = append(ids, id)
		if err := s.submit(&job{handle: restic.BlobHandle{ID: id}, data: data, stats: &counters{}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.forgetIndex()
	return ids, content
}

func TestMisnamedChunksAreNotDelivered(t *testing.T) {
	r := create(t, backendtest.NewMemory())
	ids, content := misnamed(t, r)
	var mu sync.Mutex
	err := r.Fetch(t.Context(), ids, func(i int, data []byte) error {
		mu.Lock()
		defer mu.Unlock()
		if want, ok := content[ids[i]]; !ok || !bytes.Equal(data, want) {
			t.Errorf("chunk %d is not what it is named by", i)
		}
		delete(content, ids[i])
		return nil
	})
	var missing *MissingError
	if !errors.As(err, &missing) || len(missing.Blobs) != 10 || !errors.Is(err, ErrDamaged) {
		t.Errorf("%v", err)
	}
	if len(content) > 0 {
		t.Errorf("%d good chunks were not delivered", len(content))
	}
}

func TestMisnamedChunksAreFoundWhereverTheirPackEnds(t *testing.T) {
	be := backendtest.NewMemory()
	r := create(t, be)
	_, content := misnamed(t, r)
	x, err := r.idx(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for id, entries := range x.Packs() {
		h := backend.Handle{Type: restic.PackFile, Name: id.String()}
		pack := be.Bytes(h)
		try := func(kept int) {
			lost := 0
			for _, e := range entries {
				if content[e.ID] == nil || int(e.Offset+e.Length) > kept {
					lost++
				}
			}
			broken := be.Clone()
			broken.Replace(h, pack[:kept])
			want := fmt.Sprintf("is damaged, %d of its %d blobs are lost", lost, len(entries))
			if text := damageOf(t, blind(r, broken), h); !strings.Contains(text, want) {
				t.Errorf("%d bytes of %d: %q; want %q", kept, len(pack), text, want)
			}
		}
		try(len(pack))
		for _, e := range entries {
			try(int(e.Offset + e.Length))
		}
	}
}

// damageOf is what a check says of a pack's content.
func damageOf(t *testing.T, r *Repository, h backend.Handle) string {
	t.Helper()
	report, err := r.Check(Unlocked(t.Context(), r), CheckOptions{ReadData: ReadData{All: true}})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range report.Findings {
		if f.File == h.String() && strings.Contains(f.Text, "blobs are lost") {
			return f.Text
		}
	}
	return ""
}

func TestReadsOfAPackDoNotOverlap(t *testing.T) {
	entry := func(offset, length uint32) index.Entry {
		return index.Entry{Blob: restic.Blob{Offset: offset, Length: length}}
	}
	for what, c := range map[string]struct {
		entries []index.Entry
		reads   int
	}{
		"neighbours":           {[]index.Entry{entry(0, 100), entry(100, 100)}, 1},
		"with a gap":           {[]index.Entry{entry(0, 100), entry(200, 100)}, 1},
		"one within the other": {[]index.Entry{entry(0, 300), entry(100, 100), entry(300, 100)}, 2},
		"at the same place":    {[]index.Entry{entry(0, 100), entry(0, 100)}, 2},
	} {
		reads := coalesce(restic.ID{}, c.entries)
		if len(reads) != c.reads {
			t.Errorf("%s: %d reads", what, len(reads))
		}
		for _, rd := range reads {
			end := rd.offset
			for _, e := range rd.entries {
				if int64(e.Offset) < end || int64(e.Offset)+int64(e.Length) > rd.limit {
					t.Errorf("%s: %+v", what, rd)
				}
				end = int64(e.Offset) + int64(e.Length)
			}
		}
	}
}
