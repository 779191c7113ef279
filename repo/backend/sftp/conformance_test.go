package sftp

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/url"
	"os"
	"path"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest/peers"
	"github.com/vmkeep/vmkeep/repo/restic"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// config reaches a repository of its own beside the peer's location.
func config(t *testing.T, p peers.Peer) Config {
	t.Helper()
	u, err := url.Parse(p.Location)
	if err != nil {
		t.Fatal(err)
	}
	return Config{
		User: u.User.Username(), Host: u.Hostname(), Port: u.Port(),
		Path: path.Join(u.Path, strings.NewReplacer("/", "-", "'", "").Replace(t.Name())),
		Args: strings.Fields(p.Options["sftp.args"]),
	}
}

func create(t *testing.T, cfg Config) *Backend {
	t.Helper()
	b, err := Create(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestOpenSSHKeepsTheGuarantees(t *testing.T) {
	p := peers.SFTP(t)
	backendtest.Run(t, func(t *testing.T) backend.Backend { return create(t, config(t, p)) })
}

// Servers other than OpenSSH's have neither posix-rename nor fsync. Debian's sftp-server can be told so.
func TestServerWithoutExtensionsKeepsTheGuarantees(t *testing.T) {
	server := peers.System(t, "/usr/lib/openssh/sftp-server", "openssh-sftp-server")
	backendtest.Run(t, func(t *testing.T) backend.Backend {
		return create(t, Config{Path: path.Join(t.TempDir(), "repo"), Command: []string{server, "-P", "posix-rename,fsync,hardlink"}})
	})
}

func TestOpenReportsWhatIsWrong(t *testing.T) {
	p := peers.SFTP(t)
	for name, test := range map[string]struct {
		change func(*Config)
		want   error
		text   string
	}{
		"missing directory": {func(*Config) {}, backend.ErrNotExist, "open sftp://"},
		"file":              {func(c *Config) { c.Path = "/etc/passwd" }, backend.ErrPermanent, "not a directory"},
		"key":               {func(c *Config) { c.Args = append([]string{"-i", "/dev/null"}, c.Args[4:]...) }, backend.ErrPermanent, "Permission denied"},
		"unknown host":      {func(c *Config) { c.Args[len(c.Args)-1] = "UserKnownHostsFile=/dev/null" }, backend.ErrPermanent, "Host key verification failed"},
		"no program":        {func(c *Config) { c.Command = []string{"/no/such/program"} }, backend.ErrPermanent, "start /no/such/program"},
		"option for ssh":    {func(c *Config) { c.Host = "-oProxyCommand=false" }, backend.ErrPermanent, "need a host"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(t, p)
			test.change(&cfg)
			_, err := Open(t.Context(), cfg)
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
				t.Errorf("Open: %v", err)
			}
		})
	}
}

func TestLostSessionIsReplaced(t *testing.T) {
	b := create(t, config(t, peers.SFTP(t)))
	defer b.Close()
	data := backendtest.Bytes(3 << 20)
	h := backendtest.HandleOf(restic.PackFile, data)
	if err := b.Save(t.Context(), h, data); err != nil {
		t.Fatal(err)
	}
	err := b.Load(t.Context(), h, 0, 0, func(r io.Reader) error {
		if _, err := io.CopyN(io.Discard, r, 1000); err != nil {
			return err
		}
		b.current.kill()
		<-b.current.done
		_, err := io.Copy(io.Discard, r)
		return err
	})
	if err == nil || errors.Is(err, backend.ErrPermanent) {
		t.Errorf("Load of a lost session: %v", err)
	}
	var got []byte
	err = b.Load(t.Context(), h, 0, 0, func(r io.Reader) (err error) {
		got, err = io.ReadAll(r)
		return err
	})
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("Load with the next session: %d bytes, %v", len(got), err)
	}
}

func TestServerThatDoesNotAnswerIsGivenUp(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := Open(ctx, Config{Path: "/x", Command: []string{"sleep", "1000"}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Open: %v", err)
	}
}

func TestListSkipsWhatIsNoFileOfTheRepository(t *testing.T) {
	server := peers.System(t, "/usr/lib/openssh/sftp-server", "openssh-sftp-server")
	dir := path.Join(t.TempDir(), "repo")
	b := create(t, Config{Path: dir, Command: []string{server}})
	defer b.Close()
	name := strings.Repeat("ab", 32)
	for _, junk := range []string{"keys/" + name + "-tmp-1234", "keys/README", "data/" + name} {
		if err := os.WriteFile(path.Join(dir, junk), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, ft := range []restic.FileType{restic.KeyFile, restic.PackFile} {
		err := b.List(t.Context(), ft, func(info backend.FileInfo) error {
			t.Errorf("List(%s) tells %s", ft, info.Name)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}
