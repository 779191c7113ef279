package vixtest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// breacher builds the program that breaks the rules, and places a library and a disk for it.
func breacher(t *testing.T) func(t *testing.T, args ...string) (*Library, *exec.Cmd) {
	t.Helper()
	if _, err := exec.LookPath("cc"); err != nil && os.Getenv("CI") != "true" {
		t.Skip("these tests need a C compiler (apt-get install gcc libc6-dev); with CI=true that is an error")
	}
	built := t.TempDir()
	v := Variant{Major: 8}
	if err := Build(built, v); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(built, "breach")
	if err := cc("-O1", "-Wall", "-pthread", "-I", filepath.Join(built, "src"), "-o", program, filepath.Join("testdata", "breach.c"), "-ldl"); err != nil {
		t.Fatal(err)
	}
	return func(t *testing.T, args ...string) (*Library, *exec.Cmd) {
		l := New(t, built, v)
		l.Add("disk", 1<<20)
		config := filepath.Join(t.TempDir(), "config")
		if err := os.WriteFile(config, []byte("tmpDirectory="+t.TempDir()+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		lib := filepath.Join(l.Dir, "lib64")
		cmd := exec.Command(program, append([]string{filepath.Join(lib, "libvixDiskLib.so.8"), config}, args...)...)
		cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+lib)
		return l, cmd
	}
}

// rules are those that the sources name.
func rules(t *testing.T) (out []string) {
	t.Helper()
	for _, name := range []string{"src/fake.c", "src/rules.c"} {
		b, err := sources.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?:broken\(|need\([^"]*, )"([^"]+)"`).FindAllStringSubmatch(string(b), -1) {
			if !strings.HasPrefix(m[1], "VERIFY ") { // a panic that is asked for
				out = append(out, m[1])
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Who breaks a rule of the library's is ended, each rule by a program that does so.
func TestEveryRuleFires(t *testing.T) {
	breach := breacher(t)
	_, list := breach(t)
	broken, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	have := strings.Split(strings.TrimSpace(string(broken)), "\n")
	slices.Sort(have)
	if want := rules(t); !slices.Equal(have, want) {
		t.Errorf("rules that are broken: %q\nrules there are: %q", have, want)
	}
	for _, rule := range have {
		t.Run(rule, func(t *testing.T) {
			t.Parallel()
			l, cmd := breach(t, rule)
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGABRT {
				t.Errorf("who breaks it ends with %v: %s", err, out)
			}
			said := ""
			for _, e := range l.Events() {
				if e.Call == "broken" {
					said = e.Detail
				}
			}
			if said != rule {
				t.Errorf("the library says %q", said)
			}
		})
	}
}

func TestRefusalsHaveTheirCodes(t *testing.T) {
	_, cmd := breacher(t)(t, "codes")
	out, err := cmd.CombinedOutput()
	want := `newer than the library: 6
Read and ReadAsync on one handle: 26000
read beyond the end: 16007
unbuffered into an odd address: 3
blocks of a chunk too small: 3
blocks from an odd sector: 3
blocks beyond the end: 3
`
	if err != nil || string(out) != want {
		t.Errorf("%v: %s", err, out)
	}
}
