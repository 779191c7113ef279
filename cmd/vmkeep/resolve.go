package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/vmkeep/vmkeep/plugin"
)

// merge makes options of all that was given, by key (or variable, for settings without a key).
func merge(all []setting, set map[string]given) (options, error) {
	var o options
	for _, s := range all {
		g, ok := set[s.id()]
		if !ok {
			continue
		}
		if err := s.set(&o, g.values); err != nil {
			return o, &plugin.Error{Code: plugin.CodeInvalid, Summary: fmt.Sprintf("%s is wrong", s.id()), Detail: fmt.Sprintf("%s: %v", g.origin, err),
				Remedy: s.doc, Object: s.id()}
		}
	}
	return o, nil
}

// id names a setting in maps and messages.
func (s setting) id() string {
	if s.key != "" {
		return s.key
	}
	return s.env
}

// complete resolves what options only point to: passwords in files and commands, the known hosts, the cache. ask
// asks a person for a password; it is nil when there is nobody.
func complete(ctx context.Context, o *options, e environment) error {
	if o.repositoryFile != "" && o.Repository.Location == "" {
		data, err := readText(o.repositoryFile)
		if err != nil {
			return badSecret("the repository's location", err)
		}
		o.Repository.Location = data
	}
	var err error
	if o.VSphere.Password, err = o.vspherePassword.resolve(ctx, "vSphere"); err != nil {
		return err
	}
	if o.Repository.Password, err = o.repositoryPassword.resolve(ctx, "the repository"); err != nil {
		return err
	}
	if o.VSphere.Thumbprint == "" && o.knownHosts != "" {
		o.VSphere.Thumbprint = knownThumbprint(o.knownHosts, o.VSphere.URL)
	}
	if o.Repository.CacheDir == "" && !o.noCache {
		if dir, err := os.UserCacheDir(); err == nil {
			o.Repository.CacheDir = filepath.Join(dir, "vmkeep")
		}
	}
	if o.noCache {
		o.Repository.CacheDir = ""
	}
	env := backendEnvironment(e.environ)
	for name, value := range o.Repository.Environment {
		env[name] = value
	}
	o.Repository.Environment = env
	return nil
}

// environment is what the process was started with.
type environment struct {
	environ []string
	getenv  func(string) string
}

// backendEnvironment picks the variables that restic's backends know. The password stays out: it goes another way.
func backendEnvironment(environ []string) map[string]string {
	env := make(map[string]string)
	for _, pair := range environ {
		name, value, _ := strings.Cut(pair, "=")
		if strings.HasPrefix(name, "RESTIC_PASSWORD") || strings.HasPrefix(name, "RESTIC_FROM_") || value == "" {
			continue
		}
		if strings.HasPrefix(name, "RESTIC_") || strings.HasPrefix(name, "AWS_") {
			env[name] = value
		}
	}
	return env
}

// resolve finds the password: what was given, or the content of a file, or the output of a command, without white
// space around it, as restic does. Nothing given: "".
func (s secret) resolve(ctx context.Context, of string) (string, error) {
	switch {
	case s.value != "":
		return s.value, nil
	case s.file != "":
		text, err := readText(s.file)
		if err != nil {
			return "", badSecret("the password of "+of, err)
		}
		return text, nil
	case s.command != "":
		words, err := splitCommand(s.command)
		if err != nil {
			return "", badSecret("the password of "+of, fmt.Errorf("the command that prints it: %w", err))
		}
		cmd := exec.CommandContext(ctx, words[0], words[1:]...)
		cmd.Env = withoutPasswords(os.Environ())
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return "", badSecret("the password of "+of, fmt.Errorf("%s: %w", words[0], err))
		}
		return strings.TrimSpace(string(out)), nil
	}
	return "", nil
}

// withoutPasswords is an environment for other programs: who prints one password need not know the others. Credentials of
// AWS stay, for they may be what gets at the password.
func withoutPasswords(environ []string) []string {
	return slices.DeleteFunc(slices.Clone(environ), func(pair string) bool {
		name, value, _ := strings.Cut(pair, "=")
		switch name {
		case "GOVC_PASSWORD", "RESTIC_PASSWORD", "RESTIC_REST_PASSWORD":
			return true
		case "GOVC_URL", "RESTIC_REPOSITORY":
			return withoutPassword(value) != value
		}
		return false
	})
}

func badSecret(what string, err error) error {
	if errors.Is(err, context.Canceled) {
		return &plugin.Error{Code: plugin.CodeCancelled, Summary: "cancelled", Err: err}
	}
	return &plugin.Error{Code: plugin.CodeFile, Summary: "cannot get " + what, Detail: err.Error(), Remedy: "correct the setting; \"vmkeep env\" tells where it comes from", Err: err}
}

func readText(path string) (string, error) {
	data, err := os.ReadFile(path)
	return strings.TrimSpace(string(bytes.TrimPrefix(data, []byte("\ufeff")))), err
}

// splitCommand cuts a command line into words; quotes group, and outside of single quotes a backslash protects the
// next character. No shell is involved.
func splitCommand(s string) ([]string, error) {
	var words []string
	var word strings.Builder
	var quote rune
	inWord, escaped := false, false
	for _, c := range s {
		switch {
		case escaped:
			word.WriteRune(c)
			escaped = false
		case c == '\\' && quote != '\'' && runtime.GOOS != "windows":
			escaped, inWord = true, true
		case quote != 0:
			if c == quote {
				quote = 0
			} else {
				word.WriteRune(c)
			}
		case c == '"' || c == '\'':
			quote, inWord = c, true
		case c == ' ' || c == '\t' || c == '\n':
			if inWord {
				words = append(words, word.String())
				word.Reset()
				inWord = false
			}
		default:
			word.WriteRune(c)
			inWord = true
		}
	}
	if quote != 0 || escaped {
		return nil, errors.New("a quote is not closed")
	}
	if inWord {
		words = append(words, word.String())
	}
	if len(words) == 0 {
		return nil, errors.New("it is empty")
	}
	return words, nil
}

// knownThumbprint looks a host up in govc's file: lines of "host:port thumbprint".
func knownThumbprint(path, vsphere string) string {
	u, err := url.Parse(vsphere)
	if err != nil {
		return ""
	}
	host := u.Host
	if u.Port() == "" {
		host = net.JoinHostPort(u.Hostname(), "443")
	}
	for _, path := range filepath.SplitList(path) {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // govc does not mind either
		}
		for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
			if f := strings.Fields(lines.Text()); len(f) == 2 && f[0] == host {
				return f[1]
			}
		}
	}
	return ""
}

// findPlugin returns the path of the plugin program.
func findPlugin(o options) (string, error) {
	if o.plugin != "" {
		return o.plugin, nil
	}
	path, err := beside("vmkeep-plugin")
	if err != nil {
		err.(*plugin.Error).Remedy = "install it there, or name it with --plugin or VMKEEP_PLUGIN"
	}
	return path, err
}

// beside finds another program of vmkeep: next to this one, then on PATH. The error is a [*plugin.Error].
func beside(program string) (string, error) {
	name := program
	if runtime.GOOS == "windows" {
		name += ".exe"
	}
	if self, err := os.Executable(); err == nil {
		if self, err = filepath.EvalSymlinks(self); err == nil {
			path := filepath.Join(filepath.Dir(self), name)
			if _, err := os.Stat(path); err == nil {
				return path, nil
			}
		}
	}
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	return "", &plugin.Error{Code: plugin.CodeFile, Summary: "cannot find the program " + program, Detail: "it is neither next to vmkeep nor on PATH",
		Remedy: "install it there"}
}

// collect gathers settings from their sources in order of precedence; flags holds those that were given.
func collect(all []setting, flags, file map[string]given, getenv func(string) string) map[string]given {
	set := make(map[string]given)
	for _, s := range all {
		switch {
		case has(flags, s.flag):
			set[s.id()] = flags[s.flag]
		case has(file, s.key):
			set[s.id()] = file[s.key]
		case s.env != "" && getenv(s.env) != "":
			values := []string{getenv(s.env)}
			if s.kind == list {
				values = slices.DeleteFunc(strings.Split(values[0], ","), func(v string) bool { return v == "" })
			}
			set[s.id()] = given{values: values, origin: s.env}
		}
	}
	return set
}

func has(m map[string]given, key string) bool {
	_, ok := m[key]
	return ok && key != ""
}
