package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest"
	"github.com/vmkeep/vmkeep/repo/internal/index"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// changed is data with every n-th megabyte replaced.
func changed(data []byte, every int, seed uint64) []byte {
	out := bytes.Clone(data)
	for i := 0; i*1e6+1000 < len(out); i += every {
		copy(out[i*1e6:], noise(seed+uint64(i), 900))
	}
	return out
}

func TestPruneFreesWhatForgottenSnapshotsNeeded(t *testing.T) {
	for _, dry := range []bool{true, false} {
		t.Run(fmt.Sprintf("dry %v", dry), func(t *testing.T) {
			r, be, peer := onDisk(t)
			r.packSize = minPackSize
			base := noise(1, 24e6)
			first := map[string][]byte{"disk": base, "gone": noise(3, 8e6)}
			second := map[string][]byte{"disk": changed(base, 3, 100)}
			s1, err := commitFiles(t.Context(), r, "vm", first)
			if err != nil {
				t.Fatal(err)
			}
			s2, err := commitFiles(t.Context(), r, "vm", second)
			if err != nil {
				t.Fatal(err)
			}
			if err := r.ForgetSnapshots(t.Context(), []restic.ID{s1.ID}); err != nil {
				t.Fatal(err)
			}
			before := wantClean(t, r)
			if before.UnusedBytes < 8e6/2 {
				t.Fatalf("%d bytes are unused", before.UnusedBytes)
			}
			report, err := r.Prune(t.Context(), PruneOptions{DryRun: dry, MaxUnused: Unused{None: true}})
			if err != nil {
				t.Fatal(err)
			}
			if report.UnusedBytes != before.UnusedBytes || report.RepackPacks == 0 || report.RemainingBytes != 0 {
				t.Errorf("plan: %+v", report)
			}
			after := wantClean(t, r)
			if freed := before.PackBytes - after.PackBytes; dry && freed != 0 || !dry && freed < report.UnusedBytes*9/10 {
				t.Errorf("%d bytes were freed of %d", freed, report.UnusedBytes)
			}
			if !dry && after.UnusedBytes != 0 {
				t.Errorf("%d bytes are still unused", after.UnusedBytes)
			}
			peer.Run("check", "--read-data")
			wantFiles(t, r, s2, second)
			wantFiles(t, mustOpen(t, be), s2, second)
		})
	}
}

func TestPruneRespectsItsLimits(t *testing.T) {
	be := backendtest.NewMemory()
	r := create(t, be)
	r.packSize = minPackSize
	base := noise(1, 20e6)
	s1, err := commitFiles(t.Context(), r, "vm", map[string][]byte{"disk": base})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := commitFiles(t.Context(), r, "vm", map[string][]byte{"disk": changed(base, 2, 100)}); err != nil {
		t.Fatal(err)
	}
	if err := r.ForgetSnapshots(t.Context(), []restic.ID{s1.ID}); err != nil {
		t.Fatal(err)
	}
	dataRepacked := func(o PruneOptions) (int, int64) {
		o.DryRun = true
		report, err := r.Prune(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		return report.RepackPacks, report.RemainingBytes
	}
	none, _ := dataRepacked(PruneOptions{MaxUnused: Unused{None: true}})
	all, remaining := dataRepacked(PruneOptions{MaxUnused: Unused{Unlimited: true}})
	if none <= all || remaining == 0 {
		t.Errorf("%d packs would be repacked to leave nothing unused, %d if anything may stay", none, all)
	}
	if n, _ := dataRepacked(PruneOptions{MaxUnused: Unused{None: true}, MaxRepack: 1}); n != 0 {
		t.Errorf("%d packs would be repacked within one byte", n)
	}
	if _, rest := dataRepacked(PruneOptions{MaxUnused: Unused{Bytes: 2e6}}); rest > 2e6 {
		t.Errorf("%d bytes would stay unused of at most 2,000,000", rest)
	}
}

func TestPruneJoinsSmallPacksAndDropsDuplicatesAndOrphans(t *testing.T) {
	be := backendtest.NewMemory()
	r := create(t, be)
	var last *restic.Snapshot
	files := make(map[string][]byte)
	for i := range 12 {
		files[fmt.Sprint(i)] = noise(uint64(i), 20000)
		var err error
		if last, err = commitFiles(t.Context(), r, "vm", files); err != nil {
			t.Fatal(err)
		}
	}
	// The same once more, by a process that did not know of it.
	other := create(t, backendtest.NewMemory())
	other.config, other.key, other.master = r.config, r.key, r.master
	other.be = &gate{Backend: be}
	other.index.index, other.index.files, other.index.fresh = nil, nil, false
	blind := other
	err := blind.WithLock(t.Context(), Shared, func(ctx context.Context) error {
		s := blind.start(ctx, index.New())
		defer s.stop()
		for i := range 12 {
			data := noise(uint64(i), 20000)
			if err := s.submit(&job{handle: restic.BlobHandle{ID: restic.Hash(data)}, data: data, stats: &counters{}}); err != nil {
				return err
			}
		}
		return s.flush(ctx)
	})
	if err != nil {
		t.Fatal(err)
	}
	orphan := bytes.Repeat([]byte{7}, 1000)
	if err := be.Save(t.Context(), backend.Handle{Type: restic.PackFile, Name: restic.Hash(orphan).String()}, orphan); err != nil {
		t.Fatal(err)
	}
	report, err := r.Prune(t.Context(), PruneOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if report.DuplicateBlobs != 12 || report.OrphanPacks != 1 || report.OrphanBytes != 1000 {
		t.Errorf("plan: %+v", report)
	}
	packs := 0
	for _, h := range be.Handles() {
		if h.Type == restic.PackFile {
			packs++
		}
	}
	if packs > 4 {
		t.Errorf("%d packs are left of 26 small ones", packs)
	}
	wantClean(t, r)
	wantFiles(t, r, last, files)
	if again, err := r.Prune(t.Context(), PruneOptions{}); err != nil || again.RepackPacks+again.RemovePacks+again.OrphanPacks != 0 {
		t.Errorf("a second prune finds work: %+v, %v", again, err)
	}
}

func TestRepairIndexFindsWhatThePacksHold(t *testing.T) {
	for name, hurt := range map[string]func(t *testing.T, be *backendtest.Memory){
		"all index files are gone": func(t *testing.T, be *backendtest.Memory) {
			for _, h := range be.Handles() {
				if h.Type == restic.IndexFile {
					if err := be.Remove(t.Context(), h); err != nil {
						t.Fatal(err)
					}
				}
			}
		},
		"an index file is damaged": func(t *testing.T, be *backendtest.Memory) {
			for _, h := range be.Handles() {
				if h.Type == restic.IndexFile {
					data := bytes.Clone(be.Bytes(h))
					data[len(data)/2] ^= 1
					be.Replace(h, data)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			be := backendtest.NewMemory()
			r := create(t, be)
			files := map[string][]byte{"a": noise(1, 5e6), "b": noise(2, 1e6)}
			s, err := commitFiles(t.Context(), r, "vm", files)
			if err != nil {
				t.Fatal(err)
			}
			hurt(t, be)
			r = reopen(t, be)
			if _, err := readFiles(t.Context(), r, s); err == nil {
				t.Fatal("reading works without an index")
			}
			found, err := r.Check(t.Context(), CheckOptions{})
			if err != nil || found.OK() {
				t.Fatalf("check: %v, %v", found, err)
			}
			for i, f := range found.Findings {
				if i == 0 && !strings.Contains(f.Text, "index files are lost") || f.Remedy != remedyIndex {
					t.Errorf("finding %d says %q -> %q", i, f.Text, f.Remedy)
				}
			}
			if _, err := r.Prune(t.Context(), PruneOptions{}); err == nil {
				t.Fatal("prune goes to work without an index")
			}
			report, err := r.RepairIndex(t.Context(), RepairIndexOptions{})
			if err != nil || !report.Changed || len(report.AddedPacks) == 0 || len(report.LostBlobs) != 0 {
				t.Fatalf("repair: %+v, %v", report, err)
			}
			wantClean(t, r)
			wantFiles(t, r, s, files)
			if again, err := r.RepairIndex(t.Context(), RepairIndexOptions{AllHeaders: true, ReadData: ReadData{All: true}}); err != nil || again.Changed {
				t.Errorf("a second repair finds work: %+v, %v", again, err)
			}
		})
	}
}

func TestLostChunksBecomeZerosInPlace(t *testing.T) {
	be := backendtest.NewMemory()
	r := create(t, be)
	disk := noise(1, 12e6)
	old := map[string][]byte{"disk": disk, "intact": noise(9, 2e6)}
	s, err := commitFiles(t.Context(), r, "vm", old)
	if err != nil {
		t.Fatal(err)
	}
	// A bit flips in the middle of one chunk.
	lost := restic.BlobHandle{ID: restic.Hash(disk[7e6:8e6])}
	x, err := r.idx(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	e := x.Lookup(nil, lost)[0]
	h := backend.Handle{Type: restic.PackFile, Name: e.Pack.String()}
	data := bytes.Clone(be.Bytes(h))
	data[e.Offset+e.Length/2] ^= 1
	be.Replace(h, data)

	_, err = readFiles(t.Context(), r, s)
	var missing *MissingError
	if !errors.As(err, &missing) || len(missing.Blobs) != 1 || missing.Blobs[0].BlobHandle != lost {
		t.Fatalf("reading: %v", err)
	}
	report, err := r.Check(t.Context(), CheckOptions{ReadData: ReadData{All: true}})
	if err != nil {
		t.Fatal(err)
	}
	named := slices.ContainsFunc(report.Findings, func(f Finding) bool {
		return f.Path == "/vm/disk" && f.Offset == 7e6 && f.Length == 1e6 && f.Snapshot == s.ID
	})
	if !named {
		t.Errorf("check does not name the damaged bytes: %+v", report.Findings)
	}
	fixed, err := r.RepairIndex(t.Context(), RepairIndexOptions{ReadData: ReadData{All: true}})
	if err != nil || !slices.Equal(fixed.LostBlobs, []restic.BlobHandle{lost}) || len(fixed.SalvagedPacks) != 1 {
		t.Fatalf("repair index: %+v, %v", fixed, err)
	}
	// What is lost stays lost: a repair that reads only headers does not find the pack, which would promise it again.
	for _, o := range []RepairIndexOptions{{}, {AllHeaders: true}} {
		again, err := r.RepairIndex(t.Context(), o)
		if err != nil || again.Changed {
			t.Errorf("a second repair finds work: %+v, %v", again, err)
		}
		report, err = r.Check(t.Context(), CheckOptions{})
		if err != nil || len(report.Findings) != 1 || report.Findings[0].Remedy != remedySnapshots {
			t.Errorf("after the repair: %+v, %v", report, err)
		}
	}
	dry, err := r.RepairSnapshots(t.Context(), RepairSnapshotsOptions{DryRun: true})
	if err != nil || len(dry) != 1 {
		t.Fatalf("dry repair: %+v, %v", dry, err)
	}
	repaired, err := r.RepairSnapshots(t.Context(), RepairSnapshotsOptions{Forget: true})
	if err != nil {
		t.Fatal(err)
	}
	want := []Damage{{Path: "/vm/disk", Extents: []Extent{{7e6, 1e6}}}}
	if len(repaired) != 1 || len(repaired[0].Damage) != 1 || repaired[0].Damage[0].Path != want[0].Path ||
		!slices.Equal(repaired[0].Damage[0].Extents, want[0].Extents) {
		t.Fatalf("repaired: %+v", repaired)
	}
	all, err := r.Snapshots(t.Context())
	if err != nil || len(all) != 1 || all[0].ID != repaired[0].New || !slices.Contains(all[0].Tags, RepairedTag) ||
		*all[0].Original != s.ID || !all[0].Time.Equal(s.Time) {
		t.Fatalf("snapshots: %+v, %v", all[0], err)
	}
	mended := bytes.Clone(disk)
	clear(mended[7e6:8e6])
	wantFiles(t, r, all[0], map[string][]byte{"disk": mended, "intact": old["intact"]})
	if _, err := r.Prune(t.Context(), PruneOptions{}); err != nil {
		t.Fatal(err)
	}
	wantClean(t, r)
}

// A pack of which the store gives less than it lists may be whole: it leaves the index, with what is known to be good moved, and stays.
func TestAPackThatIsReadInPartIsNotDeleted(t *testing.T) {
	be := backendtest.NewMemory()
	r := create(t, be)
	files := map[string][]byte{"disk": noise(1, 6e6)}
	s, err := commitFiles(t.Context(), r, "vm", files)
	if err != nil {
		t.Fatal(err)
	}
	largest := backend.Handle{}
	for _, h := range be.Handles() {
		if h.Type == restic.PackFile && (largest.Name == "" || len(be.Bytes(h)) > len(be.Bytes(largest))) {
			largest = h
		}
	}
	half := &shortReader{Backend: be, of: largest, bytes: int64(len(be.Bytes(largest)) / 2)}
	cut, err := Open(t.Context(), half, OpenOptions{Password: password})
	if err != nil {
		t.Fatal(err)
	}
	defer cut.Close()
	report, err := cut.RepairIndex(t.Context(), RepairIndexOptions{ReadData: ReadData{All: true}})
	if err != nil || !slices.Equal(report.KeptPacks, []string{largest.Name}) || len(report.LostBlobs) == 0 {
		t.Fatalf("%+v, %v", report, err)
	}
	r = reopen(t, be)
	if report, err := r.RepairIndex(t.Context(), RepairIndexOptions{}); err != nil || !slices.Equal(report.AddedPacks, []string{largest.Name}) {
		t.Fatalf("%+v, %v", report, err)
	}
	wantClean(t, r)
	wantFiles(t, r, s, files)
}

// shortReader is a store that ends the reading of a whole file early.
type shortReader struct {
	backend.Backend
	of    backend.Handle
	bytes int64
}

func (s *shortReader) Load(ctx context.Context, h backend.Handle, offset, length int64, fn func(io.Reader) error) error {
	return s.Backend.Load(ctx, h, offset, length, func(rd io.Reader) error {
		if h == s.of && length == 0 {
			rd = io.LimitReader(rd, s.bytes)
		}
		return fn(rd)
	})
}

func TestABackupHealsWhatItStillHas(t *testing.T) {
	be := backendtest.NewMemory()
	r := create(t, be)
	files := map[string][]byte{"disk": noise(1, 8e6)}
	s, err := commitFiles(t.Context(), r, "vm", files)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range be.Handles() { // all packs but those with trees
		if h.Type == restic.PackFile && len(be.Bytes(h)) > 1e6 {
			be.Replace(h, be.Bytes(h)[:len(be.Bytes(h))/2])
		}
	}
	if _, err := r.RepairIndex(t.Context(), RepairIndexOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := commitFiles(t.Context(), r, "vm", files); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, r, s, files)
	if _, err := r.Prune(t.Context(), PruneOptions{}); err != nil { // of the damaged packs
		t.Fatal(err)
	}
	wantClean(t, r)
}

func TestKeysOpenAndClose(t *testing.T) {
	be := backendtest.NewMemory()
	r := create(t, be)
	open := func(pw string) error {
		r, err := Open(t.Context(), be, OpenOptions{Password: pw})
		if err == nil {
			err = r.Close()
		}
		return err
	}
	id, err := r.AddKey(t.Context(), KeyOptions{Password: "second", Username: "u", Hostname: "h", KeyTime: 1})
	if err != nil || open("second") != nil || open(password) != nil {
		t.Fatalf("add: %v", err)
	}
	keys, err := r.Keys(t.Context())
	if err != nil || len(keys) != 2 || !keys[0].Current || keys[1].ID != id || keys[1].Username != "u" {
		t.Fatalf("keys: %+v, %v", keys, err)
	}
	if err := r.RemoveKey(t.Context(), keys[0].ID); err == nil {
		t.Error("the key in use was removed")
	}
	if err := r.RemoveKey(t.Context(), id); err != nil || !errors.Is(open("second"), ErrWrongPassword) {
		t.Errorf("remove: %v", err)
	}
	if _, err := r.ChangePassword(t.Context(), KeyOptions{Password: "third", KeyTime: 1}); err != nil || open("third") != nil ||
		!errors.Is(open(password), ErrWrongPassword) {
		t.Errorf("change: %v", err)
	}
}

func TestStatisticsPerHost(t *testing.T) {
	be := backendtest.NewMemory()
	r := create(t, be)
	shared := noise(1, 10e6)
	for host, files := range map[string]map[string][]byte{
		"one": {"disk": shared, "own": noise(2, 5e6)},
		"two": {"disk": shared},
	} {
		for range 2 {
			if _, err := commitFiles(t.Context(), r, host, maps.Clone(files)); err != nil {
				t.Fatal(err)
			}
		}
	}
	st, err := r.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	one, two := st.Hosts[0], st.Hosts[1]
	if one.Host != "one" || one.Snapshots != 2 || one.Latest != 15e6 || one.Logical != 30e6 || two.Logical != 20e6 || st.Total.Logical != 50e6 {
		t.Errorf("logical: %+v", st)
	}
	trees := int64(10000)
	if one.Unique < 15e6 || one.Unique > 15e6+trees || two.Unique < 10e6 || two.Unique > 10e6+trees || st.Total.Unique > 15e6+trees {
		t.Errorf("unique: %+v", st)
	}
	if two.Exclusive > trees || one.Exclusive < 2e6 || st.Total.Stored > st.PackBytes || st.Unused != 0 {
		t.Errorf("stored: %+v", st)
	}
	if c := st.Total.Compression(); c < 1.5 || c > 1.7 {
		t.Errorf("compression: %v of data half of which compresses", c)
	}
}
