package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/vmkeep/vmkeep/repo/backend/backendtest/peers"
)

// asProgram makes the test binary be vmkeep-lab.
const asProgram = "VMKEEP_LAB_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(m.Run())
}

// program is a running vmkeep-lab.
type program struct {
	*testing.T
	cmd *exec.Cmd
	env []string // what it printed, for govc
	url string   // without /sdk
	tmp string   // its TMPDIR
}

func startProgram(t *testing.T, args ...string) *program {
	t.Helper()
	p := &program{T: t, cmd: exec.Command(os.Args[0], append([]string{"--address", "127.0.0.1:0"}, args...)...), tmp: t.TempDir()}
	p.cmd.Env = append(os.Environ(), asProgram+"=1", "TMPDIR="+p.tmp)
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(\w+)='?([^' \n]*)'?`).FindAllStringSubmatch(strings.TrimPrefix(line, "export "), -1) {
		p.env = append(p.env, m[1]+"="+m[2])
		if m[1] == "GOVC_URL" {
			p.url = strings.TrimSuffix(m[2], "/sdk")
		}
	}
	if p.url == "" {
		t.Fatalf("it printed %q", line)
	}
	return p
}

// govc runs stock govc and returns what it prints.
func (p *program) govc(args ...string) string {
	p.Helper()
	cmd := exec.Command(peers.Binary(p, "govc"), args...)
	cmd.Env = append([]string{"HOME=" + p.tmp, "PATH=" + os.Getenv("PATH")}, p.env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		p.Fatalf("govc %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (p *program) http(method, path string, body []byte) []byte {
	p.Helper()
	req, err := http.NewRequest(method, p.url+path, bytes.NewReader(body))
	if err != nil {
		p.Fatal(err)
	}
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	res, err := c.Do(req)
	if err != nil {
		p.Fatal(err)
	}
	defer res.Body.Close()
	out, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode >= 300 {
		p.Fatalf("%s %s: %s %v\n%s", method, path, res.Status, err, out)
	}
	return out
}

func (p *program) wants(out string, lines ...string) {
	p.Helper()
	for _, l := range lines {
		if !strings.Contains(out, l) {
			p.Errorf("no %q in\n%s", l, out)
		}
	}
}

func TestGovc(t *testing.T) {
	p := startProgram(t, "--machines", "2", "--size", "64M")
	p.wants(p.govc("about"), "Version:      8.0.3")
	p.wants(p.govc("ls", "vm"), "/dc1/vm/vm1", "/dc1/vm/vm2")
	p.wants(p.govc("vm.info", "vm1"), "poweredOn", "/dc1/vm/vm1")
	p.wants(p.govc("device.info", "-vm", "vm1", "disk-*"), "Key:          2000", "65,536 KB", "[ds1] vm1/vm1.vmdk")
	p.govc("snapshot.create", "-vm", "vm1", "first")
	p.govc("snapshot.create", "-vm", "vm1", "second")
	p.wants(p.govc("snapshot.tree", "-vm", "vm1"), "first", "second")
	p.govc("snapshot.remove", "-vm", "vm1", "first")
	if tree := p.govc("snapshot.tree", "-vm", "vm1"); strings.Contains(tree, "first") || !strings.Contains(tree, "second") {
		t.Errorf("tree after removing the first:\n%s", tree)
	}
	p.govc("snapshot.remove", "-vm", "vm1", "*")
	p.govc("vm.power", "-off", "vm1")
	p.wants(p.govc("vm.info", "vm1"), "poweredOff")
	p.govc("vm.power", "-on", "vm1")
	p.wants(p.govc("datastore.ls", "-ds", "ds1", "vm1"), "vm1.vmx", "vm1-flat.vmdk")
	p.govc("vm.clone", "-vm", "vm1", "-on=false", "-pool", "cluster1/Resources", "-ds", "ds2", "copy")
	p.wants(p.govc("device.info", "-vm", "copy", "disk-*"), "[ds2] copy/copy.vmdk")
	p.govc("vm.destroy", "copy")
	p.govc("vm.disk.create", "-vm", "vm2", "-ds", "ds1", "-name", "vm2/extra", "-size", "16M")
	p.wants(p.govc("device.info", "-vm", "vm2", "disk-*"), "[ds1] vm2/extra.vmdk")
}

func TestGuestAndFaultsOverHTTP(t *testing.T) {
	image := filepath.Join(t.TempDir(), "root.img")
	content := make([]byte, 3<<20+100)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(content)
	if err := os.WriteFile(image, content, 0o600); err != nil {
		t.Fatal(err)
	}
	p := startProgram(t, "--disk", "web="+image, "--disk", "web="+image, "--tracking")
	live := p.http("GET", "/lab/web/2001", nil)
	if len(live) != (len(content)+511)/512*512 || !bytes.Equal(live[:len(content)], content) {
		t.Error("the imported disk differs from its image")
	}
	p.http("PUT", "/lab/web/2000?offset=4096", []byte("the guest was here"))
	if live = p.http("GET", "/lab/web/2000", nil); string(live[4096:4114]) != "the guest was here" {
		t.Error("the guest's write is not on the disk")
	}
	var list []struct {
		Name  string
		Disks []struct{ Tracked bool }
	}
	if err := json.Unmarshal(p.http("GET", "/lab", nil), &list); err != nil || len(list) != 1 || len(list[0].Disks) != 2 || !list[0].Disks[0].Tracked {
		t.Errorf("list %+v, %v", list, err)
	}
	p.http("POST", "/lab?method=CurrentTime&nth=1&do=status:503", nil)
	p.http("DELETE", "/lab", nil)
	p.http("POST", "/lab/web?leaveDelta=1", nil)
	p.http("POST", "/lab/web?powercut=1", nil)
	p.http("POST", "/lab?free=ds1:0", nil)
	cmd := exec.Command(peers.Binary(t, "govc"), "snapshot.create", "-vm", "web", "s")
	cmd.Env = append([]string{"HOME=" + p.tmp}, p.env...)
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "Insufficient disk space") {
		t.Errorf("on a full datastore: %v, %s", err, out)
	}
}

func TestEndsCleanly(t *testing.T) {
	p := startProgram(t, "--machines", "1", "--size", "1M")
	p.http("PUT", "/lab/vm1/2000", []byte("x"))
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("exit: %v", err)
	}
	if left, err := os.ReadDir(p.tmp); err != nil || len(left) > 0 {
		t.Errorf("left in the temporary directory: %v, %v", left, err)
	}
}

func TestBadArguments(t *testing.T) {
	for _, args := range [][]string{
		{"--size", "big", "--machines", "1"}, {"--size", "63T"}, {"--disk", "web"}, {"--disk", "web=/nonexistent"}, {"--disk", "web=/"}, {"surplus"}, {"--unknown"},
		{"--address", "nowhere:http:1"}, {"--address", "127.0.0.1:0", "--nfc-address", "999.9.9.9:1"},
	} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), args, &out, &errs); code == 0 || errs.Len() == 0 || out.Len() > 0 {
			t.Errorf("%v: exit %d, %q, %q", args, code, out.String(), errs.String())
		}
	}
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"--help"}, &out, &errs); code != 0 || !strings.Contains(errs.String(), "--disk web=root.img") {
		t.Errorf("help: exit %d\n%s", code, errs.String())
	}
	for s, want := range map[string]int64{"1": 512, "512": 512, "3K": 3072, "2M": 2 << 20, "1G": 1 << 30, "62T": 62 << 40} {
		if n, err := parseSize(s); err != nil || n != want {
			t.Errorf("size %s: %d, %v", s, n, err)
		}
	}
}
