package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/vmkeep/vmkeep/plugin"
)

// given is what was set, and where.
type given struct {
	values []string
	origin string // "flag --repo", "vmkeep.yaml:3", "RESTIC_REPOSITORY"
}

// configFiles are the places of the configuration file, first found wins.
func configFiles(getenv func(string) string) []string {
	files := []string{"vmkeep.yaml"}
	if dir, err := os.UserConfigDir(); err == nil {
		files = append(files, filepath.Join(dir, "vmkeep", "vmkeep.yaml"))
	}
	return append(files, "/etc/vmkeep/vmkeep.yaml")
}

// findConfig returns the configuration file to read, "" for none. A file that was named must exist.
func findConfig(named string, getenv func(string) string) (string, error) {
	if named == "" {
		named = getenv("VMKEEP_CONFIG")
	}
	if named != "" {
		if _, err := os.Stat(named); err != nil {
			return "", &plugin.Error{Code: plugin.CodeFile, Summary: "cannot read the configuration", Detail: err.Error(), Object: named,
				Remedy: "name an existing file with --config or VMKEEP_CONFIG", Err: err}
		}
		return named, nil
	}
	for _, path := range configFiles(getenv) {
		_, err := os.Stat(path)
		if err == nil {
			return path, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", &plugin.Error{Code: plugin.CodeFile, Summary: "cannot read the configuration", Detail: err.Error(), Object: path,
				Remedy: "correct the permissions, or name another file with --config", Err: err}
		}
	}
	return "", nil
}

// readConfig reads the settings of a configuration file by key. Unknown keys, doubled ones and wrong kinds are
// errors that name the line; none quotes a value, which may be a secret.
func readConfig(path string, known []setting) (map[string]given, error) {
	fail := func(line int, detail, remedy string) error {
		where := path
		if line > 0 {
			where = fmt.Sprintf("%s, line %d", path, line)
		}
		return &plugin.Error{Code: plugin.CodeInvalid, Summary: "the configuration is wrong", Detail: where + ": " + detail, Remedy: remedy, Object: path}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, &plugin.Error{Code: plugin.CodeFile, Summary: "cannot read the configuration", Detail: err.Error(), Object: path,
			Remedy: "correct the permissions, or name another file with --config", Err: err}
	}
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		line, what := 0, "it is not YAML"
		var se yaml.Error
		if errors.As(err, &se) {
			line, what = se.GetToken().Position.Line, se.GetMessage()
		}
		return nil, fail(line, what, "correct the file; \"vmkeep help config\" shows one")
	}
	read := make(map[string]given)
	var walk func(prefix string, n ast.Node) error
	walk = func(prefix string, n ast.Node) error {
		entries, ok := mapping(n)
		if !ok {
			return fail(n.GetToken().Position.Line, fmt.Sprintf("%q must hold keys and values", strings.TrimSuffix(prefix, ".")), "see \"vmkeep help config\"")
		}
		for _, entry := range entries {
			key, line := prefix+entry.Key.GetToken().Value, entry.Key.GetToken().Position.Line
			i := slices.IndexFunc(known, func(s setting) bool { return s.key == key })
			if i < 0 {
				if slices.ContainsFunc(known, func(s setting) bool { return strings.HasPrefix(s.key, key+".") }) {
					if _, null := entry.Value.(*ast.NullNode); null {
						continue
					}
					if err := walk(key+".", entry.Value); err != nil {
						return err
					}
					continue
				}
				return fail(line, fmt.Sprintf("there is no setting %q", key), suggest(key, known))
			}
			if _, double := read[key]; double {
				return fail(line, fmt.Sprintf("%q is set twice", key), "keep one")
			}
			values, ok := scalars(entry.Value, known[i].kind)
			if !ok {
				return fail(line, fmt.Sprintf("%q must hold %s", key, known[i].kind), "see \"vmkeep help config\"")
			}
			if values != nil {
				read[key] = given{values: values, origin: fmt.Sprintf("%s:%d", path, line)}
			}
		}
		return nil
	}
	for _, doc := range file.Docs {
		if doc.Body == nil {
			continue
		}
		if _, empty := doc.Body.(*ast.CommentGroupNode); empty {
			continue
		}
		if err := walk("", doc.Body); err != nil {
			return nil, err
		}
	}
	return read, nil
}

func (k kind) String() string {
	return [...]string{scalar: "one value", boolean: "true or false", list: "a list", pairs: "names and values"}[k]
}

func mapping(n ast.Node) ([]*ast.MappingValueNode, bool) {
	switch n := n.(type) {
	case *ast.MappingNode:
		return n.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}, true
	}
	return nil, false
}

// scalars reads the value of a key. nil without a failure: nothing is set.
func scalars(n ast.Node, k kind) ([]string, bool) {
	if _, null := n.(*ast.NullNode); null {
		return nil, true
	}
	switch k {
	case list:
		seq, ok := n.(*ast.SequenceNode)
		if !ok {
			v, ok := one(n)
			return []string{v}, ok
		}
		values := []string{}
		for _, e := range seq.Values {
			v, ok := one(e)
			if !ok {
				return nil, false
			}
			values = append(values, v)
		}
		return values, true
	case pairs:
		entries, ok := mapping(n)
		values := []string{}
		for _, e := range entries {
			v, ok := one(e.Value)
			if !ok {
				return nil, false
			}
			values = append(values, e.Key.GetToken().Value+"="+v)
		}
		return values, ok
	}
	v, ok := one(n)
	return []string{v}, ok
}

// one reads a scalar as it is written, so that a password 0123 keeps its zero.
func one(n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return n.GetToken().Value, true
	}
	return "", false
}

// suggest is the remedy for an unknown key: the likeliest that exists.
func suggest(key string, known []setting) string {
	best, least := "", 4
	for _, s := range known {
		last := s.key[strings.LastIndex(s.key, ".")+1:]
		d := min(distance(s.key, key), distance(last, key[strings.LastIndex(key, ".")+1:])+1)
		if s.key != "" && d < least {
			best, least = s.key, d
		}
	}
	if best == "" {
		return "\"vmkeep help config\" lists all settings"
	}
	return fmt.Sprintf("is %q meant? \"vmkeep help config\" lists all settings", best)
}

// distance is the number of letters to change, insert or delete to make b of a (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j]+1, row[j+1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}

// vsphereURL completes what people write for a vCenter, as govc does: scheme https, path /sdk.
func vsphereURL(s string) (*url.URL, error) {
	if !strings.Contains(s, "://") {
		s = "https://" + s
	}
	u, err := url.Parse(s)
	if err != nil {
		var e *url.Error
		if errors.As(err, &e) {
			err = e.Err // without the text, which may hold a password
		}
		return nil, fmt.Errorf("it is not a URL: %w", err)
	}
	if u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, errors.New("it is not of the form https://host/sdk")
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/sdk"
	}
	return u, nil
}
