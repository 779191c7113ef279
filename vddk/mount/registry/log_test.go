package registry

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
)

// Logs are written here, from the description of the formats. (Hives of Windows 7 and 10 with their logs, as the tests
// of yarp have them, were read equal to what those systems made of them; they are not ours to keep here.)

type memory struct{ *bytes.Reader }

func mem(b []byte) File { return memory{bytes.NewReader(b)} }

// golden is a small hive; goldenText is what hivexregedit made it of, see TestGoldenHive.
func golden(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "hive"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const goldenText = `[HKEY_LOCAL_MACHINE\X\MountedDevices]
"\\DosDevices\\C:"=hex:78,56,34,12,00,00,10,00,00,00,00,00
"\\DosDevices\\D:"=hex:44,4d,49,4f,3a,49,44,3a,33,22,11,00,55,44,77,66,88,99,aa,bb,cc,dd,ee,ff

[HKEY_LOCAL_MACHINE\X\Select]
"Current"=dword:00000001

[HKEY_LOCAL_MACHINE\X\Setup]
"Text"=hex(1):6f,00,6e,00,65,00,00,00
`

// TestGoldenHive makes the golden hive anew, and keeps it when VMKEEP_GOLDEN names the directory for it.
func TestGoldenHive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hive")
	mounttest.Hive(t, path, goldenText)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if dir := os.Getenv("VMKEEP_GOLDEN"); dir != "" {
		if err := os.WriteFile(filepath.Join(dir, "hive"), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := content(t, mem(b)), content(t, mem(golden(t))); got != want {
		t.Errorf("the golden hive has\n%s\nand a new one\n%s", want, got)
	}
}

// content is all keys and values of a hive, as text.
func content(t testing.TB, hive File, logs ...File) string {
	t.Helper()
	h, err := Open(hive, logs...)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := h.dump(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func (h *Hive) dump(b *strings.Builder) error {
	root, err := h.Root()
	if err != nil {
		return err
	}
	return root.dump(b, 0)
}

func (k Key) dump(b *strings.Builder, depth int) error {
	if depth > 20 || b.Len() > 1<<20 {
		return nil
	}
	for v, err := range k.Values() {
		if err != nil {
			return err
		}
		b.WriteString(v.Name + "=" + v.Text() + string(v.Data) + "\n")
	}
	for s, err := range k.Subkeys() {
		if err != nil {
			return err
		}
		b.WriteString("[" + s.name + "]\n")
		if err := s.dump(b, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// seal makes the checksum of a base block right.
func seal(b []byte) []byte {
	var x uint32
	for k := 0; k < 508; k += 4 {
		x ^= le.Uint32(b[k:])
	}
	le.PutUint32(b[508:], x)
	return b
}

// interrupted is a hive that Windows was about to write, from state seq on.
func interrupted(hive []byte, seq uint32) []byte {
	b := bytes.Clone(hive)
	le.PutUint32(b[4:], seq+1)
	le.PutUint32(b[8:], seq)
	seal(b)
	return b
}

// logOf makes a log that holds entries, each a set of pages of the hives given: what differs from one to the next.
func logOf(seq uint32, states ...[]byte) []byte {
	log := bytes.Clone(states[0][:512])
	le.PutUint32(log[4:], seq)
	le.PutUint32(log[8:], seq)
	le.PutUint32(log[28:], typeNew)
	seal(log)
	for k, now := range states[1:] {
		before := states[k]
		var refs, pages []byte
		for at := baseLen; at < len(now); at += pageLen {
			if at < len(before) && bytes.Equal(before[at:at+pageLen], now[at:at+pageLen]) {
				continue
			}
			refs = le.AppendUint32(refs, uint32(at-baseLen))
			refs = le.AppendUint32(refs, pageLen)
			pages = append(pages, now[at:at+pageLen]...)
		}
		e := append(make([]byte, 40), append(refs, pages...)...)
		e = append(e, make([]byte, (pageLen-len(e)%pageLen)%pageLen)...)
		copy(e, "HvLE")
		le.PutUint32(e[4:], uint32(len(e)))
		le.PutUint32(e[12:], seq+uint32(k))
		le.PutUint32(e[16:], uint32(len(now)-baseLen))
		le.PutUint32(e[20:], uint32(len(refs)/8))
		log = append(log, hashed(e)...)
	}
	return log
}

// hashed makes the hashes of an entry right.
func hashed(e []byte) []byte {
	le.PutUint64(e[24:], marvin(e[40:]))
	le.PutUint64(e[32:], marvin(e[:32]))
	return e
}

// changed is the hive with the text of one value replaced.
func changed(t testing.TB, hive []byte, word string) []byte {
	t.Helper()
	old := []byte("o\x00n\x00e\x00")
	if bytes.Count(hive, old) != 1 {
		t.Fatal("the text is not there once")
	}
	var u []byte
	for _, c := range word {
		u = binary.LittleEndian.AppendUint16(u, uint16(c))
	}
	return bytes.Replace(hive, old, u, 1)
}

func TestHiveIsReadTogetherWithItsLogs(t *testing.T) {
	hive := golden(t)
	two, six := changed(t, hive, "two"), changed(t, hive, "six")
	dirty := interrupted(hive, 10)
	first, second := logOf(11, hive, two), logOf(12, two, six)
	broken := bytes.Clone(second)
	broken[len(broken)-1] ^= 1
	old := bytes.Clone(hive[:512])
	le.PutUint32(old[28:], typeOldest)
	seal(old)
	bitmap := make([]byte, 4+(len(hive)-baseLen)/pageLen/8)
	copy(bitmap, "DIRT")
	var pages []byte
	for at := baseLen; at < len(hive); at += pageLen {
		if n := (at - baseLen) / pageLen; !bytes.Equal(hive[at:at+pageLen], six[at:at+pageLen]) {
			bitmap[4+n/8] |= 1 << (n % 8)
			pages = append(pages, six[at:at+pageLen]...)
		}
	}
	old = append(append(append(old, bitmap...), make([]byte, pageLen-len(bitmap))...), pages...)
	for _, c := range []struct {
		name, want string
		hive       []byte
		logs       [][]byte
		uncertain  string
	}{
		{"complete", "one", hive, [][]byte{logOf(3, hive, two)}, ""},
		{"one log", "two", dirty, [][]byte{first, {}}, ""},
		{"two entries", "six", dirty, [][]byte{logOf(11, hive, two, six)}, ""},
		{"two logs", "six", dirty, [][]byte{first, second}, ""},
		{"two logs, the other way round", "six", dirty, [][]byte{second, first}, ""},
		{"the numbers count round", "six", interrupted(hive, 1<<32-2), [][]byte{logOf(1<<32-1, hive, two), logOf(0, two, six)}, ""},
		{"the last entry was not finished", "two", dirty, [][]byte{first, broken}, ""},
		{"a gap", "one", dirty, [][]byte{first, logOf(14, two, six)}, "entry 14 follows entry 11"},
		{"older", "one", interrupted(hive, 20), [][]byte{first, second}, "older than the hive"},
		{"no log", "one", dirty, nil, "no log that would help"},
		{"of Windows 7", "six", dirty, [][]byte{old, {}}, ""},
		{"of Windows 7, cut off", "one", dirty, [][]byte{old[:1100]}, "too short"},
	} {
		var logs []File
		for _, l := range c.logs {
			logs = append(logs, mem(l))
		}
		h, err := Open(mem(c.hive), logs...)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if h.Replayed != (c.want != "one") || (h.Uncertain == "") != (c.uncertain == "") || !strings.Contains(h.Uncertain, c.uncertain) {
			t.Errorf("%s: replayed %v, uncertain %q", c.name, h.Replayed, h.Uncertain)
		}
		if got := content(t, mem(c.hive), logs...); !strings.Contains(got, "Text="+c.want) {
			t.Errorf("%s: want %s, have\n%s", c.name, c.want, got)
		}
	}
	// A hive whose base block was cut off while it was written.
	torn := bytes.Clone(dirty)
	copy(torn[32:64], make([]byte, 32))
	if got := content(t, mem(torn), mem(first)); !strings.Contains(got, "Text=two") {
		t.Errorf("without a base block:\n%s", got)
	}
}

// What is damaged has right sums: whoever means harm makes them right.
func TestDamagedHives(t *testing.T) {
	hive := golden(t)
	six := changed(t, hive, "six")
	mounttest.Damage{Opens: 25, Try: func(n uint64) (tried mounttest.Tried) {
		rnd := rand.New(rand.NewPCG(n, 19))
		b, log := interrupted(hive, 10), logOf(11, hive, six)
		for range 1 + rnd.IntN(1+int(n%20)) {
			switch rnd.IntN(8) {
			case 0:
				mounttest.Spoil(rnd, b[:48])
			case 1:
				mounttest.Spoil(rnd, log[:48])
			case 2:
				mounttest.Spoil(rnd, log[512:640])
			default:
				mounttest.Spoil(rnd, b[baseLen:baseLen+2048])
			}
		}
		seal(b)
		seal(log)
		hashed(log[512:])
		tried.Opened, tried.Errors = use(b, log)
		return tried
	}}.Run(t)
}

// use reads all of a hive.
func use(hive, log []byte) (opened bool, failures int) {
	h, err := Open(mem(hive), mem(log))
	if err != nil {
		return false, 1
	}
	if h.Uncertain != "" {
		failures++
	}
	var b strings.Builder
	if h.dump(&b) != nil {
		failures++
	}
	return true, failures
}

func FuzzHive(f *testing.F) {
	hive := golden(f)
	log := logOf(11, hive, changed(f, hive, "six"))
	f.Add(uint16(36), []byte{0x20}, uint16(520), []byte{1})
	f.Add(uint16(4096+32), []byte{0, 0, 0, 0x80}, uint16(512), []byte{})
	f.Fuzz(func(t *testing.T, at uint16, change []byte, logAt uint16, logChange []byte) {
		b, l := interrupted(hive, 10), bytes.Clone(log)
		copy(b[int(at)%len(b):], change)
		copy(l[int(logAt)%len(l):], logChange)
		seal(b)
		seal(l)
		hashed(l[512:])
		use(b, l)
	})
}
