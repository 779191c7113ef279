package main

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/vmkeep/vmkeep/repo/backend/backendtest/peers"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// spy knows secrets, and looks for them where others can look. Names tell secrets apart in what it reports: it never shows one.
type spy struct {
	t *testing.T

	mu       sync.Mutex
	secrets  map[string]string // by value: what it is
	reported map[string]bool
	looked   map[string]int // how many times at what, so that a test that looks at nothing fails
}

func (s *spy) learn(what, secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secrets[secret] = what
}

// look reports every secret that text holds, in the writings that programs use.
func (s *spy) look(kind, where string, text []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.looked[kind]++
	for secret, what := range s.secrets {
		for _, written := range []string{secret, url.QueryEscape(secret), url.PathEscape(secret), strconv.Quote(secret), base64.StdEncoding.EncodeToString([]byte(secret))} {
			if id := what + " in " + kind; bytes.Contains(text, []byte(strings.Trim(written, `"`))) && !s.reported[id] {
				s.reported[id] = true
				s.t.Errorf("%s holds the %s", where, what)
			}
		}
	}
}

// files looks at every file below dir.
func (s *spy) files(kind, dir string) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil // it may be gone
		}
		if data, err := os.ReadFile(path); err == nil {
			s.look(kind, path, data)
		}
		return nil
	})
}

// process looks at a process: what anybody sees of it, and what it was given by the host.
func (s *spy) process(host int) {
	for _, pid := range descendants(host) {
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		where := fmt.Sprintf("of %s", bytes.TrimSpace(name))
		if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && len(line) > 0 {
			s.look("a command line", "the command line "+where, line)
		}
		if pid == host || environmentAt(pid) == environmentAt(host) {
			continue // whoever called it put the secrets there; and who was forked and has not become another program yet
		}
		if env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)); err == nil && len(env) > 0 {
			s.look("an environment", "the environment "+where, env)
		}
	}
}

// environmentAt is where a process has its environment in memory: elsewhere than its parent, once it runs a program.
func environmentAt(pid int) string {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "" // it has ended
	}
	if fields := statFields(line); len(fields) > 48 {
		return fields[47] + " " + fields[48] // env_start and env_end of proc(5)
	}
	return ""
}

// statFields are those of a line of /proc/PID/stat from the third on: the second may hold anything.
func statFields(line []byte) []string {
	_, rest, _ := strings.Cut(string(line[bytes.LastIndexByte(line, ')'):]), " ")
	return strings.Fields(rest)
}

// descendants are a process and all below it.
func descendants(root int) []int {
	children := map[int][]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range stats {
		line, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if fields := statFields(line); len(fields) > 1 {
			parent, _ := strconv.Atoi(fields[1])
			children[parent] = append(children[parent], pid)
		}
	}
	found := []int{root}
	for i := 0; i < len(found); i++ {
		found = append(found, children[found[i]]...)
	}
	return found
}

// run runs vmkeep as the spy watches: its processes and its state while it runs, its output afterwards.
func (s *spy) run(h home, args ...string) (int, string) {
	s.t.Helper()
	cmd := h.command(args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	tick := time.NewTicker(20 * time.Millisecond) // processes tell nobody when they start others
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			s.look("output", "vmkeep "+args[0], out.Bytes())
			return code(s.t, err), out.String()
		case <-tick.C:
			s.process(cmd.Process.Pid)
			s.files("the state directory", h.stateDir())
		}
	}
}

func (h home) stateDir() string { return filepath.Join(h.dir, ".local", "state", "vmkeep") }

var ticket = regexp.MustCompile(`<sessionId>([^<]+)</sessionId>`)

// overhear learns the secrets that vSphere gives out: the cookies of sessions, and tickets for disks.
func (s *spy) overhear(l *lab.Lab) {
	l.Inject(lab.Fault{Times: -1, Do: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		for _, c := range r.Cookies() {
			s.learn("session cookie", strings.Trim(c.Value, `"`))
		}
		next.ServeHTTP(&listener{w, s}, r)
	}})
}

type listener struct {
	http.ResponseWriter
	s *spy
}

func (l *listener) Write(p []byte) (int, error) {
	for _, m := range ticket.FindAllSubmatch(p, -1) {
		l.s.learn("ticket of a disk", string(m[1]))
	}
	return l.ResponseWriter.Write(p)
}

// TestSecretsStayWhereTheyBelong: whole backups and restores, as chatty as can be, to storage that needs credentials; what
// they print, their processes and what they write down holds none of the secrets that they use.
func TestSecretsStayWhereTheyBelong(t *testing.T) {
	const vcenterPassword, repositoryPassword = "vC/42&Kenn+wort", "repo=Pass%wort 17"
	for name, storage := range map[string]func(t *testing.T, s *spy) peers.Peer{"s3": s3WithSecret, "rest": restWithPassword} {
		t.Run(name, func(t *testing.T) {
			s := &spy{t: t, secrets: map[string]string{}, reported: map[string]bool{}, looked: map[string]int{}}
			s.learn("vCenter password", vcenterPassword)
			s.learn("repository password", repositoryPassword)
			l, err := lab.Start(t.Context(), lab.Options{Dir: t.TempDir(), Password: vcenterPassword,
				Machines: []lab.Machine{{Name: "web", Disks: []lab.Disk{{Size: 24 << 20}}}}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := l.Close(); err != nil {
					t.Error(err)
				}
			})
			s.overhear(l)
			peer := storage(t, s)
			h := home{t: t, dir: t.TempDir(), lab: l, password: repositoryPassword, more: []string{"RESTIC_REPOSITORY=" + peer.Location}}
			for name, value := range peer.Env {
				h.more = append(h.more, name+"="+value)
			}
			disks, err := l.Machine("web").Disks()
			if err != nil {
				t.Fatal(err)
			}
			change := func(seed byte) {
				data := bytes.Repeat([]byte{seed, 'x', seed}, 1<<20)[:3<<20]
				if err := l.Machine("web").Write(disks[0].Key, data, 1<<20); err != nil {
					t.Fatal(err)
				}
			}
			for i, args := range [][]string{
				{"init"}, {"doctor"}, {"backup", "web"}, {"backup", "web", "--json"}, {"points", "-l"}, {"verify", "web"},
				{"restore", "latest", "--machine", "web", "--mode", "rollback", "--power-off", "--verify"},
				{"restore", "latest", "--machine", "web", "--name", "web2"},
				{"restore", "latest", "--machine", "web", "--to", filepath.Join(h.dir, "out")},
				{"check", "--read-data"}, {"forget", "--keep-last", "1", "--prune"}, {"env"}, {"env", "--json"},
			} {
				change(byte(i))
				if code, out := s.run(h, append(args, "-vv")...); code != exitOK && args[0] != "doctor" {
					t.Errorf("vmkeep %s: exit code %d\n%s", strings.Join(args, " "), code, out)
				}
			}
			// Errors tell much.
			for _, wrong := range []string{"GOVC_PASSWORD=x" + vcenterPassword, "RESTIC_PASSWORD=x" + repositoryPassword,
				"RESTIC_REPOSITORY=" + strings.Replace(peer.Location, "http:", "gopher:", 1), "GOVC_URL=https://u:" + url.QueryEscape(vcenterPassword) + "@127.0.0.1:1/sdk"} {
				bad := h
				bad.more = append(bad.more[:len(bad.more):len(bad.more)], wrong)
				if code, out := s.run(bad, "backup", "web", "-vv"); code == exitOK {
					t.Errorf("a backup with a wrong %s succeeds:\n%s", strings.SplitN(wrong, "=", 2)[0], out)
				}
			}
			s.files("a file of the user's", h.dir)
			for _, kind := range []string{"a command line", "an environment", "output", "the state directory", "a file of the user's"} {
				if s.looked[kind] == 0 {
					t.Errorf("the test looked at no %s", kind)
				}
			}
			learnt := map[string]bool{}
			for _, what := range s.secrets {
				learnt[what] = true
			}
			for _, what := range []string{"session cookie", "ticket of a disk", "storage secret"} {
				if !learnt[what] {
					t.Errorf("the test knows no %s", what)
				}
			}
		})
	}
}

func s3WithSecret(t *testing.T, s *spy) peers.Peer {
	s.learn("storage secret", peers.SecretKey)
	return peers.S3(t)
}

// restWithPassword has the password in the location, where restic's users have it.
func restWithPassword(t *testing.T, s *spy) peers.Peer {
	const password = "rest-Wort-99"
	s.learn("storage secret", password)
	s.learn("storage secret, as HTTP sends it", base64.StdEncoding.EncodeToString([]byte("keeper:"+password)))
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "htpasswd")
	if err := os.WriteFile(file, append([]byte("keeper:"), append(hash, '\n')...), 0o600); err != nil {
		t.Fatal(err)
	}
	p := peers.RestServer(t, "--htpasswd-file", file)
	p.Location = strings.Replace(p.Location, "http://", "http://keeper:"+password+"@", 1)
	return p
}

// TestPasswordCommandsInheritNoPasswords: who prints one password need not know the others.
func TestPasswordCommandsInheritNoPasswords(t *testing.T) {
	dir := t.TempDir()
	seen := filepath.Join(dir, "seen")
	script := filepath.Join(dir, "print")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nenv > "+seen+"\necho geheim\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	h := home{t: t, dir: dir, more: []string{"RESTIC_PASSWORD_COMMAND=" + script, "GOVC_PASSWORD=of-vCenter", "GOVC_URL=ann:of-vCenter@vc.example", "RESTIC_REST_PASSWORD=of-storage", "TOKEN=of-the-user"}}
	h.must("init")
	env, err := os.ReadFile(seen)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(env, []byte("of-vCenter")) || bytes.Contains(env, []byte("of-storage")) || !bytes.Contains(env, []byte("TOKEN=of-the-user")) {
		t.Errorf("the command was given\n%s", env)
	}
}
