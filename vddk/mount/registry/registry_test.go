package registry_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
	"github.com/vmkeep/vmkeep/vddk/mount/registry"
)

type file struct{ *bytes.Reader }

func open(t *testing.T, path string) *registry.Hive {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h, err := registry.Open(file{bytes.NewReader(b)})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// sample is keys and values in the form of regedit: short and long ones, names outside Latin-1, and so many keys that
// their list is a list of lists.
func sample() string {
	var b strings.Builder
	b.WriteString("[HKEY_LOCAL_MACHINE\\X\\MountedDevices]\n\"\\\\DosDevices\\\\C:\"=hex:78,56,34,12,00,00,10,00,00,00,00,00\n\n")
	b.WriteString("[HKEY_LOCAL_MACHINE\\X\\Größe]\n\n[HKEY_LOCAL_MACHINE\\X\\Größe\\日本]\n@=\"default\"\n\"DWord\"=dword:12345678\n\"Empty\"=hex:\n\"Ünï\"=hex(1):6e,00,61,00,ef,00,76,00,65,00,00,00\n\n")
	b.WriteString("[HKEY_LOCAL_MACHINE\\X\\Long]\n\n[HKEY_LOCAL_MACHINE\\X\\Many]\n\n")
	for _, n := range []int{5, 2000, 16344, 16345, 40000} {
		one := hex.EncodeToString(bytes.Repeat([]byte{byte(n), 7}, n/2+1)[:n])
		var pairs []string
		for k := 0; k < len(one); k += 2 {
			pairs = append(pairs, one[k:k+2])
		}
		fmt.Fprintf(&b, "[HKEY_LOCAL_MACHINE\\X\\Long]\n\"n%d\"=hex:%s\n\n", n, strings.Join(pairs, ","))
	}
	for k := range 1200 {
		fmt.Fprintf(&b, "[HKEY_LOCAL_MACHINE\\X\\Many\\key %d]\n\"n\"=dword:%08x\n\n", k, k)
	}
	return b.String()
}

// TestHiveEqualsHivex: what hivexregedit wrote is what we read, and reads hivex itself.
func TestHiveEqualsHivex(t *testing.T) {
	mounttest.NeedTools(t, "hivexml")
	path := filepath.Join(t.TempDir(), "hive")
	mounttest.Hive(t, path, sample())
	h := open(t, path)
	if h.Replayed || h.Uncertain != "" {
		t.Errorf("replayed %v, uncertain %q", h.Replayed, h.Uncertain)
	}
	root, err := h.Root()
	if err != nil {
		t.Fatal(err)
	}
	find := func(name string, path ...string) registry.Value {
		t.Helper()
		k, err := root.Find(path...)
		if err != nil {
			t.Fatal(err)
		}
		v, err := k.Value(name)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	if v := find(`\dosdevices\c:`, "mounteddevices"); hex.EncodeToString(v.Data) != "785634120000100000000000" || v.Type != 3 {
		t.Errorf("%+v", v)
	}
	if v := find("", "größe", "日本"); v.Text() != "default" {
		t.Errorf("%+v", v)
	}
	if v := find("ünï", "Größe", "日本"); v.Text() != "naïve" || v.Name != "Ünï" {
		t.Errorf("%+v", v)
	}
	if v := find("dword", "Größe", "日本"); hex.EncodeToString(v.Data) != "78563412" || v.Type != 4 || v.Text() != "" {
		t.Errorf("%+v", v)
	}
	if v := find("empty", "Größe", "日本"); len(v.Data) != 0 {
		t.Errorf("%+v", v)
	}
	for _, n := range []int{5, 2000, 16344, 16345, 40000} {
		v := find(fmt.Sprint("n", n), "Long")
		if !bytes.Equal(v.Data, bytes.Repeat([]byte{byte(n), 7}, n/2+1)[:n]) {
			t.Errorf("%s: %d bytes that differ", v.Name, len(v.Data))
		}
	}
	many, err := root.Find("Many")
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]bool{}
	for k, err := range many.Subkeys() {
		if err != nil {
			t.Fatal(err)
		}
		keys[k.Name()] = true
	}
	if len(keys) != 1200 || !keys["key 0"] || !keys["key 1199"] {
		t.Errorf("%d keys", len(keys))
	}
	for _, p := range [][]string{{"nothing"}, {"Many", "key 1200"}, {"Many", "key 1", "x"}} {
		if _, err := root.Find(p...); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v", p, err)
		}
	}
	xml, err := exec.Command("hivexml", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	ours := walk(t, root)
	if theirs := bytes.Count(xml, []byte("<node ")); ours.keys+1 != theirs {
		t.Errorf("%d keys, hivex sees %d", ours.keys+1, theirs)
	}
	if theirs := bytes.Count(xml, []byte("<value ")); ours.values != theirs {
		t.Errorf("%d values, hivex sees %d", ours.values, theirs)
	}
}

type sums struct{ keys, values int }

// walk reads all below a key.
func walk(t testing.TB, k registry.Key) (s sums) {
	t.Helper()
	for _, err := range k.Values() {
		if err != nil {
			t.Fatal(err)
		}
		s.values++
	}
	for sub, err := range k.Subkeys() {
		if err != nil {
			t.Fatal(err)
		}
		below := walk(t, sub)
		s.keys, s.values = s.keys+1+below.keys, s.values+below.values
	}
	return s
}
