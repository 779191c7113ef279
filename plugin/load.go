package plugin

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
)

// LoadOptions say which plugin program to start and how.
type LoadOptions struct {
	Path        string        // of the program
	Checksum    string        // SHA-256 it must have, hexadecimal; empty: any
	Logger      hclog.Logger  // takes the plugin's log; nil: none. Its level becomes the plugin's.
	Host        string        // name and version of the calling program
	NoMTLS      bool          // do not authenticate and encrypt the connection; the socket is private to the user anyway
	Environment []string      // "NAME=value" beyond the minimal environment. No secrets: they go through Configure.
	Start       time.Duration // how long the program may take to start; 0: one minute
	Drain       time.Duration // how long Close waits for cleanup; 0: [DefaultDrain]
}

// Loaded is a running plugin process.
type Loaded struct {
	Service
	client *goplugin.Client
	dir    string // of its socket
	drain  time.Duration
	end    sync.Once
}

// Load starts a plugin process. Its environment holds only what finds files, hosts and certificates; secrets travel
// through Configure. Starting ends within o.Start, also when ctx ends before, and fails then; the process outlives ctx.
// Close the result.
func Load(ctx context.Context, o LoadOptions) (*Loaded, error) {
	path, secure, err := program(o)
	if err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	if o.Start == 0 {
		o.Start = time.Minute
	}
	if o.Drain == 0 {
		o.Drain = DefaultDrain
	}
	dir, err := socketDirectory()
	if err != nil {
		return nil, &Error{Code: CodeFile, Summary: "cannot make a directory for the plugin's socket", Detail: err.Error(),
			Remedy: "make room in the directory for temporary files, or set TMPDIR", Err: err}
	}
	cmd := exec.Command(path, "--log-level="+o.Logger.GetLevel().String())
	cmd.Env = append(environment(os.LookupEnv), o.Environment...)
	cmd.Env = append(cmd.Env, goplugin.EnvUnixSocketDir+"="+dir)
	detach(cmd)
	l := &Loaded{dir: dir, drain: o.Drain, client: goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig:  Handshake(),
		VersionedPlugins: Plugins(Glue{Host: o.Host}),
		Cmd:              cmd,
		SkipHostEnv:      true,
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		AutoMTLS:         !o.NoMTLS,
		SecureConfig:     secure,
		Logger:           o.Logger,
		StartTimeout:     o.Start,
		SyncStdout:       printed(o.Logger, hclog.Debug),
		SyncStderr:       printed(o.Logger, hclog.Warn),
	})}
	protocol, err := l.client.Client()
	var raw any
	if err == nil {
		raw, err = protocol.Dispense(PluginName)
	}
	if err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		l.Kill()
		return nil, startError(path, err)
	}
	l.Service = raw.(Service)
	return l, nil
}

// maxSocketPath is the longest path of a socket, in bytes: sun_path has 104 on macOS and the BSDs, 108 on Linux, with a
// closing zero. go-plugin's sockets are called "plugin" and up to ten digits.
const maxSocketPath = 103 - len("/plugin0123456789")

// socketDirectory makes a private directory for the plugin's socket: below the one for temporary files, unless that is too
// deep for the path of a socket.
func socketDirectory() (string, error) {
	dir, err := os.MkdirTemp("", "vmkeep-")
	if err != nil || len(dir) <= maxSocketPath {
		return dir, err
	}
	short, err := os.MkdirTemp("/tmp", "vmkeep-")
	return short, errors.Join(err, os.Remove(dir))
}

// printed takes what a library in the plugin prints past the log.
func printed(log hclog.Logger, level hclog.Level) io.Writer {
	return log.StandardWriter(&hclog.StandardLoggerOptions{ForceLevel: level})
}

// Close lets the plugin finish its cleanup and ends the process. The error tells that something was left on vSphere;
// the process has ended in any case.
func (l *Loaded) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), l.drain)
	defer cancel()
	var err error
	if !l.client.Exited() {
		err = l.Drain(ctx)
		l.Service.(*client).calls.wait(ctx)
	}
	l.Kill()
	return err
}

// Kill ends the process without waiting for its cleanup: calls in flight fail, and what they did to vSphere stays
// until Recover. It may be called while Close waits, and more than once.
func (l *Loaded) Kill() {
	l.client.Kill()
	l.end.Do(func() { os.RemoveAll(l.dir) })
}

// program checks the plugin's file.
func program(o LoadOptions) (string, *goplugin.SecureConfig, error) {
	path, err := filepath.Abs(o.Path)
	if err == nil {
		_, err = exec.LookPath(path)
	}
	if err != nil || o.Path == "" {
		return "", nil, &Error{Code: CodeFile, Summary: fmt.Sprintf("cannot start the plugin %q", o.Path), Detail: reason(err),
			Remedy: "install vmkeep-plugin next to vmkeep, or say where it is", Object: o.Path, Err: err}
	}
	if o.Checksum == "" {
		return path, nil, nil
	}
	sum, err := hex.DecodeString(o.Checksum)
	if err != nil || len(sum) != sha256.Size {
		return "", nil, &Error{Code: CodeInvalid, Summary: "the plugin's checksum is not a SHA-256", Object: o.Checksum,
			Remedy: "give 64 hexadecimal digits, as sha256sum prints them"}
	}
	return path, &goplugin.SecureConfig{Checksum: sum, Hash: sha256.New()}, nil
}

func reason(err error) string {
	if err == nil {
		return "no path is given"
	}
	return err.Error()
}

func startError(path string, err error) error {
	e := &Error{Code: CodeInternal, Summary: "the plugin does not start", Detail: err.Error(), Object: path, Err: err,
		Remedy: "run \"" + path + " --version\"; look at the log with --verbose"}
	switch {
	case errors.Is(err, goplugin.ErrChecksumsDoNotMatch):
		e.Code, e.Summary, e.Detail = CodeFile, "the plugin is not the expected program", "its SHA-256 differs from the one that is demanded"
		e.Remedy = "install it anew from a source you trust, or correct the checksum"
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		e.Code, e.Summary, e.Remedy = CodeCancelled, "cancelled while the plugin started", ""
	}
	return e
}

// environment is what a plugin inherits: where files, certificates and proxies are, and nothing that could be a
// secret. A proxy with a password in its address is left out; it can be configured for the repository.
func environment(lookup func(string) (string, bool)) []string {
	var env []string
	for _, name := range []string{"PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "SSH_AUTH_SOCK", "SSL_CERT_FILE", "SSL_CERT_DIR", "RCLONE_CONFIG",
		"VMKEEP_HOST_ROOT", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR",
		"SYSTEMROOT", "USERPROFILE", "APPDATA", "LOCALAPPDATA", "TEMP", "TMP"} {
		if value, ok := lookup(name); ok {
			env = append(env, name+"="+value)
		}
	}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"} {
		for _, name := range []string{name, strings.ToLower(name)} {
			value, ok := lookup(name)
			if !ok {
				continue
			}
			if u, err := url.Parse(value); err == nil && u.User == nil && !strings.Contains(value, "@") {
				env = append(env, name+"="+value)
			}
		}
	}
	return env
}
