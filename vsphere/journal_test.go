package vsphere

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func openJournal(t *testing.T, dir string) *Journal {
	t.Helper()
	j, err := OpenJournal(dir)
	must(t, err)
	return j
}

func TestJournalForgetsWhatIsUndone(t *testing.T) {
	dir := t.TempDir()
	j := openJournal(t, dir)
	op, err := j.Begin("op1", "repo")
	must(t, err)
	x, err := op.announce(entry{Kind: EntrySnapshot, Machine: "vm-1"})
	must(t, err)
	must(t, x.note("snapshot-1"))
	must(t, x.strike())
	must(t, op.End())
	must(t, op.End())
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	must(t, err)
	if len(names) != 1 || filepath.Base(names[0]) != "id" {
		t.Errorf("files %v", names)
	}
	if j2 := openJournal(t, dir); j2.id != j.id {
		t.Error("the installation changed its identity")
	}
}

func TestJournalStrikesTogether(t *testing.T) {
	j := openJournal(t, t.TempDir())
	op, err := j.Begin("op1", "repo")
	must(t, err)
	var effects []*effect
	for _, name := range []string{"a", "b", "c"} {
		x, err := op.announce(entry{Kind: EntryDisk, Name: name})
		must(t, err)
		effects = append(effects, x)
	}
	must(t, op.strike(effects[0], effects[2]))
	if open := op.effects(); len(open) != 1 || open[0].e.Name != "b" {
		t.Errorf("open: %+v", open)
	}
	text, err := os.ReadFile(op.name)
	must(t, err)
	if n := strings.Count(string(text), `"undone"`); n != 2 || int64(len(text)) != op.size {
		t.Errorf("%d lines say that something was undone, of %d bytes %d are known: %s", n, len(text), op.size, text)
	}
	must(t, op.strike(effects[1]))
	must(t, op.End())
}

func TestJournalKeepsWhatIsNot(t *testing.T) {
	j := openJournal(t, t.TempDir())
	op, err := j.Begin("op1", "repo")
	must(t, err)
	a, err := op.announce(entry{Kind: EntrySnapshot, Machine: "vm-1", Object: "vmkeep-op1"})
	must(t, err)
	must(t, a.note("snapshot-1"))
	b, err := op.announce(entry{Kind: EntryDisk, Machine: "vm-2"})
	must(t, err)
	must(t, b.strike())
	_, err = op.announce(entry{Kind: EntryMachine, Machine: "group-1", Name: "web"})
	must(t, err)
	dead, live, err := j.claim()
	if err != nil || len(dead) != 0 || len(live) != 1 || live[0] != "op1" || !j.running("op1") {
		t.Errorf("while it runs: dead %v, live %v, %v", dead, live, err)
	}
	if err := op.End(); !errors.Is(err, ErrLeftover) || !strings.Contains(err.Error(), "snapshot-1") {
		t.Errorf("End: %v", err)
	}
	dead, live, err = j.claim()
	must(t, err)
	if len(dead) != 1 || len(live) != 0 || dead[0].repository != "repo" {
		t.Fatalf("dead %v, live %v", dead, live)
	}
	if second, live, err := j.claim(); err != nil || len(second) != 0 || len(live) != 1 {
		t.Errorf("claimed twice: %v %v %v", second, live, err)
	}
	got := dead[0].effects()
	if len(got) != 2 || got[0].e.Kind != EntryMachine || got[1].e.Object != "snapshot-1" {
		t.Errorf("effects %v", got)
	}
	for _, x := range got {
		must(t, x.strike())
	}
	must(t, dead[0].End())
	if _, err := os.Stat(dead[0].name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file stays: %v", err)
	}
}

// A crash may tear the last line anywhere: what was announced before is kept, and the file can be written on.
func TestJournalTornAnywhere(t *testing.T) {
	dir := t.TempDir()
	j := openJournal(t, dir)
	op, err := j.Begin("op1", "repo")
	must(t, err)
	_, err = op.announce(entry{Kind: EntrySnapshot, Machine: "vm-1"})
	must(t, err)
	_, err = op.announce(entry{Kind: EntryDisk, Machine: "vm-2"})
	must(t, err)
	_ = op.End()
	whole, err := os.ReadFile(op.name)
	must(t, err)
	lines := strings.SplitAfter(string(whole), "\n")
	for cut := range len(whole) + 1 {
		must(t, os.WriteFile(op.name, whole[:cut], 0o600))
		dead, _, err := j.claim()
		if err != nil || len(dead) != 1 {
			t.Fatalf("cut at %d: %d dead, %v", cut, len(dead), err)
		}
		want := 0
		if cut >= len(lines[0])+len(lines[1]) {
			want++
		}
		if cut == len(whole) {
			want++
		}
		o := dead[0]
		if n := len(o.effects()); n != want {
			t.Fatalf("cut at %d: %d effects, want %d", cut, n, want)
		}
		_, err = o.announce(entry{Kind: EntryMethod, Machine: "vm-3"})
		must(t, err)
		_ = o.End()
		again, _, err := j.claim()
		must(t, err)
		if n := len(again[0].effects()); n != want+1 {
			t.Fatalf("cut at %d, written on: %d effects, want %d", cut, n, want+1)
		}
		_ = again[0].End()
	}
}

func TestJournalDamaged(t *testing.T) {
	dir := t.TempDir()
	j := openJournal(t, dir)
	must(t, os.WriteFile(filepath.Join(dir, "bad.jsonl"), []byte("{\"line\":\"begin\"}\nnonsense\n{}\n"), 0o600))
	op, err := j.Begin("good", "")
	must(t, err)
	_, err = op.announce(entry{Kind: EntrySnapshot})
	must(t, err)
	_ = op.End()
	dead, _, err := j.claim()
	if !errors.Is(err, ErrJournal) || !strings.Contains(err.Error(), "bad.jsonl") || len(dead) != 1 {
		t.Errorf("%d dead, %v", len(dead), err)
	}
	for _, o := range dead {
		_ = o.End()
	}
}

// What is in the journal is found whatever its directory is called, and a directory that cannot be read is not an empty one.
func TestJournalIsFoundAnywhere(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state [1]")
	j := openJournal(t, dir)
	op, err := j.Begin("op1", "")
	must(t, err)
	_, err = op.announce(entry{Kind: EntrySnapshot})
	must(t, err)
	_ = op.End()
	open, _, err := j.peek()
	must(t, err)
	dead, _, err := j.claim()
	must(t, err)
	if len(open) != 1 || len(dead) != 1 {
		t.Errorf("%d announced, %d dead", len(open), len(dead))
	}
	for _, o := range dead {
		_ = o.End()
	}
	must(t, os.RemoveAll(dir))
	if _, _, err := j.peek(); !errors.Is(err, ErrJournal) {
		t.Errorf("peek of nothing: %v", err)
	}
	if _, _, err := j.claim(); !errors.Is(err, ErrJournal) {
		t.Errorf("claim of nothing: %v", err)
	}
}

func TestJournalRefuses(t *testing.T) {
	dir := t.TempDir()
	j := openJournal(t, dir)
	for _, id := range []string{"../x", "a b", "-x", strings.Repeat("x", 65), "x/y"} {
		if _, err := j.Begin(id, ""); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", id, err)
		}
	}
	op, err := j.Begin("op1", "")
	must(t, err)
	if _, err := j.Begin("op1", ""); !errors.Is(err, ErrExists) {
		t.Errorf("the same id: %v", err)
	}
	must(t, op.End())
	if _, err := op.announce(entry{}); !errors.Is(err, ErrJournal) {
		t.Errorf("after End: %v", err)
	}
	var none *Operation
	if _, err := none.announce(entry{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("no operation: %v", err)
	}
	file := filepath.Join(dir, "file")
	must(t, os.WriteFile(file, nil, 0o600))
	if _, err := OpenJournal(file); !errors.Is(err, ErrJournal) {
		t.Errorf("a file as directory: %v", err)
	}
}

func TestJournalOfManyAtOnce(t *testing.T) {
	dir := t.TempDir()
	var all sync.WaitGroup
	ids := make([]string, 16)
	for i := range ids {
		all.Go(func() {
			j, err := OpenJournal(dir)
			if err != nil {
				t.Error(err)
				return
			}
			ids[i] = j.id
			op, err := j.Begin("", "")
			if err != nil {
				t.Error(err)
				return
			}
			for range 5 {
				x, err := op.announce(entry{Kind: EntrySnapshot})
				if err != nil {
					t.Error(err)
					return
				}
				if dead, _, err := j.claim(); err != nil || len(dead) > 0 {
					t.Errorf("dead %v, %v", dead, err)
				}
				if err := x.strike(); err != nil {
					t.Error(err)
				}
			}
			if err := op.End(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Errorf("two identities: %s %s", id, ids[0])
		}
	}
}

func TestMarks(t *testing.T) {
	j := openJournal(t, t.TempDir())
	op, err := j.Begin("op-1.x", "repo")
	must(t, err)
	defer op.End()
	m, ok := parseMark(op.snapshotName(), op.mark())
	if !ok || m.operation != "op-1.x" || m.journal != j.id || m.repository != "repo" || m.host == "" {
		t.Errorf("%+v %v of %q", m, ok, op.mark())
	}
	for name, c := range map[string][2]string{
		"name only":         {op.snapshotName(), "before the upgrade"},
		"description only":  {"mine", op.mark()},
		"another operation": {"vmkeep-op2", op.mark()},
		"empty":             {"", ""},
		"prefix":            {"vmkeep-", markText},
	} {
		if _, ok := parseMark(c[0], c[1]); ok {
			t.Errorf("%s is taken for ours", name)
		}
	}
}
