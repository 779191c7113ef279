package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// python is Debian's interpreter, which has Debian's grpc; another one on PATH has not.
const python = "/usr/bin/python3"

// need ends a test that lacks a program: with an error in CI, where nothing may be skipped.
func need(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s %v: %v\n%s-> make tools", name, args, err, out)
		}
		t.Skipf("%s %v: %v -> make tools", name, args, err)
	}
}

// TestPythonHost: a host in another language drives the plugin: backup with events, points, bytes.
func TestPythonHost(t *testing.T) {
	need(t, python, "-c", "import grpc, google.protobuf")
	need(t, "protoc", "--version")
	dir := t.TempDir()
	program := filepath.Join(dir, "vmkeep-plugin")
	build := exec.Command("go", "build", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	tree := filepath.Join(dir, "tree")
	if err := os.MkdirAll(filepath.Join(tree, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tree, "etc", "hostname"), []byte("linux\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	guest := filepath.Join(dir, "guest.img")
	need(t, "/sbin/mke2fs", "-q", "-t", "ext4", "-d", tree, guest, "16M")
	image := filepath.Join(dir, "web.img")
	data := make([]byte, 3<<20)
	rand.NewChaCha8([32]byte{3}).Read(data)
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(data, 2<<20)
	if err := errors.Join(err, f.Truncate(16<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	l, err := lab.Start(context.Background(), lab.Options{Dir: filepath.Join(dir, "lab"), Machines: []lab.Machine{{Name: "web", Disks: []lab.Disk{{Image: image}, {Image: guest}}}}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()

	u := l.URL()
	password, _ := u.User.Password()
	tmp := t.TempDir()
	host := func(args ...string) (string, string, error) {
		cmd := exec.Command(python, append([]string{"../../plugin/proto/python/host.py", "--plugin", program}, args...)...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + tmp, "PYTHONDONTWRITEBYTECODE=1",
			"RESTIC_REPOSITORY=" + filepath.Join(dir, "repo"), "RESTIC_PASSWORD=geheim", "VMKEEP_STATE_DIR=" + filepath.Join(dir, "state"),
			"GOVC_URL=" + u.Scheme + "://" + u.Host + u.Path, "GOVC_USERNAME=" + u.User.Username(), "GOVC_PASSWORD=" + password, "VMKEEP_THUMBPRINT=" + l.Thumbprint()}
		var out, problems bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &problems
		err := cmd.Run()
		return out.String(), problems.String(), err
	}
	must := func(args ...string) (string, string) {
		t.Helper()
		out, problems, err := host(args...)
		if err != nil {
			t.Fatalf("host.py %v: %v\n%s", args, err, problems)
		}
		return out, problems
	}

	if out, _ := must("info"); !strings.Contains(out, "vmkeep") || !strings.Contains(out, "protocol v1") {
		t.Errorf("info: %q", out)
	}
	if _, problems, err := host("points"); err == nil || !strings.Contains(problems, "  -> ") {
		t.Errorf("without a repository: %v, %q", err, problems)
	}
	must("init")
	if out, _ := must("machines"); out != "web poweredOn scsi0-0=16777216 scsi0-1=16777216\n" {
		t.Errorf("machines: %q", out)
	}
	out, events := must("backup", "web")
	if !strings.HasPrefix(out, "web ") || !strings.HasPrefix(events, "1 web ") {
		t.Errorf("backup: %q\n%s", out, events)
	}
	id := strings.TrimSpace(strings.TrimPrefix(out, "web "))
	if out, _ := must("points"); !strings.HasPrefix(out, id+" web ") || !strings.Contains(out, "scsi0-0:no previous point") {
		t.Errorf("points: %q", out)
	}
	want := make([]byte, 16<<20)
	copy(want[2<<20:], data)
	if out, _ := must("cat", id, "scsi0-0"); out != string(want) {
		t.Errorf("cat: %d bytes that differ", len(out))
	}
	if out, _ := must("ls", id); !strings.Contains(out, "volume ") {
		t.Errorf("ls: %q", out)
	}
	if out, _ := must("ls", id, "/etc"); !strings.Contains(out, "file 6 ") || !strings.Contains(out, "hostname") {
		t.Errorf("ls /etc: %q", out)
	}
	if out, _ := must("stat", id, "/etc/hostname"); !regexp.MustCompile(`^file 6 644 \d+:\d+ 20\S+ /etc/hostname\n$`).MatchString(out) {
		t.Errorf("stat: %q", out)
	}
	if out, _ := must("stat", id, "/etc"); !strings.HasPrefix(out, "dir ") {
		t.Errorf("stat of a directory: %q", out)
	}
	if out, _ := must("get", id, "/etc/hostname"); out != "linux\n" {
		t.Errorf("get: %q", out)
	}
	archive, _ := must("tar", id, "/etc")
	names := make(map[string]bool)
	for r := tar.NewReader(strings.NewReader(archive)); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names[filepath.Base(h.Name)] = true
	}
	if !names["hostname"] {
		t.Errorf("tar holds %v", names)
	}
	if n := l.Machine("web").SnapshotCount(); n != 0 {
		t.Errorf("%d snapshots are left", n)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left in TMPDIR: %v, %v", left, err)
	}
}

// TestByHand: started by hand, the plugin tells about itself and prints nothing that a host could take for a handshake.
func TestByHand(t *testing.T) {
	for _, c := range []struct {
		args           []string
		code           int
		stdout, stderr string
	}{
		{nil, 1, "", "run \"vmkeep\""},
		{[]string{"--log-level=debug", "--from-the-future"}, 1, "", "run \"vmkeep\""},
		{[]string{"--version"}, 0, "vmkeep-plugin ", ""},
		{[]string{"--help"}, 0, "describe", ""},
		{[]string{"describe"}, 0, `"protocol_versions"`, ""},
	} {
		var out, problems bytes.Buffer
		code := run(c.args, &out, &problems)
		if code != c.code || !strings.Contains(out.String(), c.stdout) || !strings.Contains(problems.String(), c.stderr) || c.stdout == "" && out.Len() > 0 {
			t.Errorf("%v: code %d\n%s\n%s", c.args, code, out.String(), problems.String())
		}
	}
}
