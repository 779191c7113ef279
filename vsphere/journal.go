package vsphere

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// A journal is a directory. One file per operation, JSON lines, each on disk before what it announces happens:
//
//	<dir>/id                 identity of the installation
//	<dir>/<operation>.jsonl  {"line":"begin","operation":"...","repository":"...","journal":"...","host":"...","time":"..."}
//	                         {"line":"do","n":1,"kind":"snapshot","server":"...","machine":"vm-42","object":"vmkeep-..."}
//	                         {"line":"note","n":1,"object":"snapshot-7"}     what was learnt afterwards
//	                         {"line":"undone","n":1}                         seen to be undone, or meant to stay
//
// Whoever runs the operation holds a lock on its file; the operating system frees it when the process dies. An
// operation whose file is not locked is dead. A line without its newline was never finished, and what it would have
// announced did not happen.

// EntryKind is a kind of side effect on vSphere.
type EntryKind string

// The kinds of side effect.
const (
	EntrySnapshot EntryKind = "snapshot"
	EntryCBT      EntryKind = "change-tracking"
	EntryDisk     EntryKind = "disk"
	EntryMethod   EntryKind = "disabled-method"
	EntryMachine  EntryKind = "machine"
	// EntryLibrary is the use of VMware's library, which may attach disks of the machine to the one vmkeep runs in.
	EntryLibrary EntryKind = "library"
	// EntryOverwrite is the writing over disks that exist. It cannot be undone.
	EntryOverwrite EntryKind = "overwrite"
)

// entry is a side effect as the journal keeps it.
type entry struct {
	Line    string    `json:"line"`
	N       int       `json:"n,omitempty"`
	Kind    EntryKind `json:"kind,omitempty"`
	Server  string    `json:"server,omitempty"`  // About.InstanceUUID
	Machine string    `json:"machine,omitempty"` // managed object id
	Path    string    `json:"path,omitempty"`    // inventory path
	Object  string    `json:"object,omitempty"`  // snapshot's name, then its id; disk's datastore path; method; machine's id; overwrite: the point
	Name    string    `json:"name,omitempty"`    // machine: name; disk: place; overwrite: key of the mark
	Action  string    `json:"action,omitempty"`  // disk: "detach", "delete", "carry" or "hold"; change tracking: "on" or "reset"; machine: "keep" or "hold"
	Before  []string  `json:"before,omitempty"`  // disk: datastore paths of the machine's disks before
	Old     *oldDisk  `json:"old,omitempty"`     // disk: what had to make room

	Datacenter string `json:"datacenter,omitempty"` // managed object id; disk that is carried: where its datastore is
	Carrier    string `json:"carrier,omitempty"`    // managed object id; disk that is held: the machine that carries it
	Fill       string `json:"fill,omitempty"`       // disk that is held: what it is to become

	Operation  string    `json:"operation,omitempty"`
	Repository string    `json:"repository,omitempty"`
	Journal    string    `json:"journal,omitempty"`
	Host       string    `json:"host,omitempty"`
	Time       time.Time `json:"time"`
}

// actionKeep is the action of a machine that stays when filling it fails.
const actionKeep = "keep"

// oldDisk is a disk that was detached to make room, and goes back when the new one fails.
type oldDisk struct {
	Path string `json:"path"`
	Mode string `json:"mode"`
}

// Journal keeps side effects on vSphere in a state directory, so that they can be undone after a crash.
type Journal struct {
	dir  string
	id   string
	host string
	now  func() time.Time
}

// OpenJournal opens the journal in dir, which is made when missing.
func OpenJournal(dir string) (*Journal, error) {
	bad := func(err error) error {
		return &Error{Kind: ErrJournal, Object: dir, Summary: "the state directory " + dir + " cannot be used", Err: err,
			Remedy: "choose a directory on a local disk that the user may write"}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, bad(err)
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	id, err := installation(dir)
	if err != nil {
		return nil, bad(err)
	}
	return &Journal{dir: dir, id: id, host: strings.ReplaceAll(host, " ", "_"), now: time.Now}, nil
}

// installation reads or makes the identity of the state directory.
func installation(dir string) (string, error) {
	name := filepath.Join(dir, "id")
	for range 10 {
		if b, err := os.ReadFile(name); err == nil {
			if id := strings.TrimSpace(string(b)); len(id) == 32 {
				return id, nil
			}
			return "", fmt.Errorf("%s does not hold an identity", name)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		tmp, err := os.CreateTemp(dir, ".id-*")
		if err != nil {
			return "", err
		}
		_, err = fmt.Fprintln(tmp, randomHex(16))
		err = errors.Join(err, tmp.Sync(), tmp.Close())
		if err == nil {
			err = os.Link(tmp.Name(), name) // fails when another process was first
		}
		os.Remove(tmp.Name())
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
		if err := syncDir(dir); err != nil {
			return "", err
		}
	}
	return "", fmt.Errorf("%s appears and disappears", name)
}

func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// operationID is the form of operation ids: they become file names and snapshot names.
var operationID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// Begin starts an operation. id names its snapshots ("vmkeep-<id>"), empty: a new one; repository is the id of the
// repository that profits, for the descriptions of snapshots. The operation has to be ended.
func (j *Journal) Begin(id, repository string) (*Operation, error) {
	if id == "" {
		id = j.now().UTC().Format("20060102-150405-") + randomHex(4)
	}
	if !operationID.MatchString(id) {
		return nil, &Error{Kind: ErrInvalid, Object: id, Summary: fmt.Sprintf("%q cannot name an operation", id), Remedy: "use letters, digits, dots and dashes, 64 at most"}
	}
	name := filepath.Join(j.dir, id+".jsonl")
	bad := func(err error) error {
		return &Error{Kind: ErrJournal, Object: name, Summary: "operation " + id + " cannot be written to the journal", Err: err, Remedy: "check space and rights of the state directory"}
	}
	if _, err := os.Stat(name); err == nil {
		return nil, &Error{Kind: ErrExists, Object: id, Summary: "operation " + id + " is in the journal already", Remedy: "run recover, or choose another id"}
	}
	o := &Operation{j: j, name: name, id: id, repository: repository, open: make(map[int]entry)}
	f, err := createLocked(name, func(f *os.File) error {
		o.f = f
		return o.write(entry{Line: "begin", Operation: id, Repository: repository, Journal: j.id, Host: j.host})
	})
	if err != nil {
		return nil, bad(err)
	}
	if err := syncDir(j.dir); err != nil {
		f.Close()
		return nil, bad(err)
	}
	return o, nil
}

// Operation is a run with side effects. It is safe for concurrent use.
type Operation struct {
	j          *Journal
	id         string
	repository string
	name       string
	begun      time.Time // known of those taken over

	mu   sync.Mutex
	f    *os.File // nil: ended
	size int64
	n    int
	open map[int]entry
}

// ID names the operation.
func (o *Operation) ID() string { return o.id }

// write appends lines, all or none, and waits until they are on disk. o.mu is held, or nobody else knows o.
func (o *Operation) write(entries ...entry) error {
	now := o.j.now().UTC()
	var lines []byte
	for _, e := range entries {
		e.Time = now
		line, err := json.Marshal(e)
		if err != nil {
			return err
		}
		lines = append(append(lines, line...), '\n')
	}
	if o.f == nil {
		return errors.New("the operation has ended")
	}
	_, err := o.f.Write(lines)
	if err == nil {
		err = o.f.Sync()
	}
	if err != nil {
		// Half a line would swallow the next one. If even this fails the next start cuts it off.
		if o.f.Truncate(o.size) == nil {
			o.f.Seek(o.size, io.SeekStart)
		}
		return err
	}
	o.size += int64(len(lines))
	return nil
}

// effect is a side effect that is announced and not yet undone.
type effect struct {
	o *Operation
	e entry
}

// announce writes that a side effect is about to happen. Only after it returned may it happen.
func (o *Operation) announce(e entry) (*effect, error) {
	if o == nil {
		return nil, &Error{Kind: ErrInvalid, Summary: "no operation is given for a change on vSphere", Remedy: "begin one with Journal.Begin"}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	e.Line, e.N = "do", o.n+1
	if err := o.write(e); err != nil {
		return nil, &Error{Kind: ErrJournal, Object: o.name, Summary: "the journal cannot be written, so nothing is changed on vSphere", Err: err,
			Remedy: "check space and rights of the state directory"}
	}
	o.n++
	o.open[e.N] = e
	return &effect{o, e}, nil
}

// note adds what was learnt of the side effect: the id of the snapshot, of the machine.
func (x *effect) note(object string) error {
	x.o.mu.Lock()
	defer x.o.mu.Unlock()
	e := x.o.open[x.e.N]
	e.Object = object
	x.o.open[x.e.N] = e
	if err := x.o.write(entry{Line: "note", N: x.e.N, Object: object}); err != nil {
		return &Error{Kind: ErrJournal, Object: x.o.name, Summary: "the journal cannot be written", Err: err, Remedy: "check space and rights of the state directory"}
	}
	return nil
}

// strike writes that the side effect was seen to be undone, or is meant to stay.
func (x *effect) strike() error { return x.o.strike(x) }

// strike does so for side effects that only together make sense: who dies in it has struck all of them or none.
func (o *Operation) strike(effects ...*effect) error {
	if len(effects) == 0 {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	var lines []entry
	for _, x := range effects {
		delete(o.open, x.e.N)
		lines = append(lines, entry{Line: "undone", N: x.e.N})
	}
	if err := o.write(lines...); err != nil {
		return &Error{Kind: ErrJournal, Object: o.name, Summary: "the journal cannot be written", Err: err, Remedy: "run recover later: it finds nothing to undo and tidies up"}
	}
	return nil
}

// End gives the operation up. Its file disappears when everything was undone; otherwise it stays for a recovery, and
// the error is [ErrLeftover]. Ending twice is fine.
func (o *Operation) End() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.f == nil {
		return nil
	}
	f := o.f
	o.f = nil
	if len(o.open) == 0 {
		if err := removeLocked(f, o.name); err != nil {
			return &Error{Kind: ErrJournal, Object: o.name, Summary: "the journal of operation " + o.id + " cannot be removed", Err: err, Remedy: "check the rights of the state directory"}
		}
		return syncDir(o.j.dir)
	}
	f.Close() // gives the lock back
	e := &Error{Kind: ErrLeftover, Object: o.id, Summary: fmt.Sprintf("operation %s left %d things on vSphere", o.id, len(o.open)), Remedy: "run vmkeep recover"}
	for _, n := range slices.Sorted(maps.Keys(o.open)) {
		e.Candidates = append(e.Candidates, o.open[n].String())
	}
	return e
}

func (e entry) String() string {
	return fmt.Sprintf("%s %s of %s", e.Kind, orText(e.Object, e.Name), orText(e.Path, e.Machine))
}

// files are the names of the operations' files.
func (j *Journal) files() (names []string, err error) {
	all, err := os.ReadDir(j.dir)
	for _, e := range all {
		if strings.HasSuffix(e.Name(), ".jsonl") {
			names = append(names, filepath.Join(j.dir, e.Name()))
		}
	}
	if err != nil {
		return nil, &Error{Kind: ErrJournal, Object: j.dir, Summary: "the state directory " + j.dir + " cannot be read", Err: err, Remedy: "check its rights"}
	}
	return names, nil
}

// claim takes over the operations of the journal that nobody runs any more. live are those that somebody runs. A file
// that cannot be read is reported in the error and left alone; the rest is still returned. The claimed operations
// have to be ended.
func (j *Journal) claim() (dead []*Operation, live []string, err error) {
	names, err := j.files()
	if err != nil {
		return nil, nil, err
	}
	var errs []error
	for _, name := range names {
		id := strings.TrimSuffix(filepath.Base(name), ".jsonl")
		o, err := j.take(name, id)
		switch {
		case errors.Is(err, ErrLive):
			live = append(live, id)
		case errors.Is(err, fs.ErrNotExist): // ended meanwhile
		case err != nil:
			errs = append(errs, &Error{Kind: ErrJournal, Object: name, Summary: "the journal file " + name + " cannot be read", Err: err,
				Remedy: "look at vSphere for snapshots named vmkeep-" + id + ", then delete the file"})
		default:
			dead = append(dead, o)
		}
	}
	return dead, live, errors.Join(errs...)
}

// take locks and reads one operation's file.
func (j *Journal) take(name, id string) (_ *Operation, err error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if err := lockFile(f); err != nil {
		return nil, err
	}
	// The name may have gone, or have become another file, between opening and locking.
	mine, err := f.Stat()
	if err != nil {
		return nil, err
	}
	there, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !os.SameFile(mine, there) {
		return nil, fs.ErrNotExist
	}
	o := &Operation{j: j, f: f, name: name, id: id, open: make(map[int]entry)}
	good, err := o.replay(f)
	if err != nil {
		return nil, err
	}
	o.size = good
	if err := f.Truncate(good); err != nil { // a torn line would swallow the next one
		return nil, err
	}
	if _, err := f.Seek(good, io.SeekStart); err != nil {
		return nil, err
	}
	return o, nil
}

// replay reads the lines and returns the length of the whole ones.
func (o *Operation) replay(r io.Reader) (int64, error) {
	br := bufio.NewReader(r)
	var good int64
	for n := 1; ; n++ {
		line, err := br.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return good, nil
		}
		if err != nil {
			return 0, err
		}
		var e entry
		if err := json.Unmarshal(bytes.TrimSpace(line), &e); err != nil {
			return 0, fmt.Errorf("line %d: %w", n, err)
		}
		good += int64(len(line))
		switch e.Line {
		case "begin":
			o.repository, o.begun = e.Repository, e.Time
		case "do":
			o.open[e.N] = e
			o.n = max(o.n, e.N)
		case "note":
			if was, ok := o.open[e.N]; ok {
				was.Object = e.Object
				o.open[e.N] = was
			}
		case "undone":
			delete(o.open, e.N)
		}
	}
}

// effects are the open side effects, newest first: undoing goes backwards.
func (o *Operation) effects() []*effect {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := make([]*effect, 0, len(o.open))
	for _, e := range o.open {
		out = append(out, &effect{o, e})
	}
	slices.SortFunc(out, func(a, b *effect) int { return b.e.N - a.e.N })
	return out
}

// mark is what a snapshot's or a half-made machine's description says of its maker.
type mark struct {
	repository, operation, journal, host string
}

// snapshotPrefix begins the names of our snapshots; the operation's id follows.
const snapshotPrefix = "vmkeep-"

// markText begins the description.
const markText = "vmkeep: temporary, removed when the operation ends"

func (o *Operation) snapshotName() string { return snapshotPrefix + o.id }

func (o *Operation) mark() string {
	return fmt.Sprintf("%s (operation=%s journal=%s host=%s repository=%s)", markText, o.id, o.j.id, o.j.host, orText(o.repository, "none"))
}

// parseMark recognizes a snapshot of ours: by name and description together. Anything else is foreign.
func parseMark(name, description string) (mark, bool) {
	id, ok := strings.CutPrefix(name, snapshotPrefix)
	if !ok {
		return mark{}, false
	}
	m, ok := readMark(description)
	return m, ok && m.operation == id
}

// readMark reads a description.
func readMark(description string) (mark, bool) {
	i := strings.Index(description, markText)
	if i < 0 {
		return mark{}, false
	}
	var m mark
	for f := range strings.FieldsSeq(strings.Trim(description[i+len(markText):], " ()\n")) {
		k, v, _ := strings.Cut(strings.Trim(f, "()"), "=")
		switch k {
		case "operation":
			m.operation = v
		case "journal":
			m.journal = v
		case "host":
			m.host = v
		case "repository":
			m.repository = v
		}
	}
	return m, m.operation != ""
}

// running reports whether a process holds the operation's lock.
func (j *Journal) running(id string) bool {
	f, err := os.OpenFile(filepath.Join(j.dir, id+".jsonl"), os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(lockFile(f), ErrLive)
}

// announced is an open side effect as seen without taking its operation over.
type announced struct {
	Leftover
	server string
}

// peek reads the journal and changes nothing. live are the operations that somebody runs.
func (j *Journal) peek() (open []announced, live []string, err error) {
	names, err := j.files()
	if err != nil {
		return nil, nil, err
	}
	var errs []error
	for _, name := range names {
		id := strings.TrimSuffix(filepath.Base(name), ".jsonl")
		keep := ""
		if j.running(id) {
			live, keep = append(live, id), keepRunning
		}
		o, err := j.look(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
		}
		for _, x := range o.effects() {
			l := leftoverOf(o, x.e)
			l.Keep = keep
			open = append(open, announced{l, x.e.Server})
		}
	}
	return open, live, errors.Join(errs...)
}

// look reads one operation's file without taking it over: as far as it can be read.
func (j *Journal) look(name string) (*Operation, error) {
	o := &Operation{j: j, name: name, id: strings.TrimSuffix(filepath.Base(name), ".jsonl"), open: make(map[int]entry)}
	f, err := os.Open(name)
	if err != nil {
		return o, err
	}
	defer f.Close()
	if _, err := o.replay(f); err != nil {
		return o, fmt.Errorf("journal file %s: %w", name, err)
	}
	return o, nil
}
