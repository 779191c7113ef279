package lvm

import (
	"errors"
	"strconv"
	"strings"
)

// section is a block of LVM's metadata text: string, int64, []any or section by name.
type section map[string]any

func (s section) str(key string) string      { v, _ := s[key].(string); return v }
func (s section) num(key string) int64       { v, _ := s[key].(int64); return v }
func (s section) list(key string) []any      { v, _ := s[key].([]any); return v }
func (s section) section(key string) section { v, _ := s[key].(section); return v }

// has reports whether a list holds a string.
func (s section) has(key, want string) bool {
	for _, v := range s.list(key) {
		if v == want {
			return true
		}
	}
	return false
}

// parse reads metadata text:
//
//	name = value        value: number, "string", [ value, ... ]
//	name { ... }        # comment to the end of the line
func parse(s string) (section, error) {
	p := parser{rest: s}
	top, err := p.section(0)
	if err == nil && p.skip() != 0 {
		err = errors.New("metadata has a closing brace too many")
	}
	return top, err
}

type parser struct{ rest string }

const maxDepth = 12 // LVM's own text has four levels

// skip passes over space and comments and returns the byte that follows, 0 at the end.
func (p *parser) skip() byte {
	for {
		p.rest = strings.TrimLeft(p.rest, " \t\r\n\x00")
		if !strings.HasPrefix(p.rest, "#") {
			break
		}
		if _, after, ok := strings.Cut(p.rest, "\n"); ok {
			p.rest = after
		} else {
			p.rest = ""
		}
	}
	if p.rest == "" {
		return 0
	}
	return p.rest[0]
}

func (p *parser) section(depth int) (section, error) {
	if depth > maxDepth {
		return nil, errors.New("metadata is nested too deep")
	}
	out := section{}
	for {
		switch p.skip() {
		case 0:
			if depth > 0 {
				return nil, errors.New("metadata ends within a section")
			}
			return out, nil
		case '}':
			if depth > 0 {
				p.rest = p.rest[1:]
			}
			return out, nil
		}
		n := strings.IndexAny(p.rest, " \t\r\n={}[]\",#")
		if n <= 0 {
			return nil, errors.New("metadata has no name where one must be")
		}
		name := p.rest[:n]
		p.rest = p.rest[n:]
		var err error
		switch p.skip() {
		case '{':
			p.rest = p.rest[1:]
			out[name], err = p.section(depth + 1)
		case '=':
			p.rest = p.rest[1:]
			out[name], err = p.value(depth + 1)
		default:
			err = errors.New("metadata has a name without value")
		}
		if err != nil {
			return nil, err
		}
	}
}

func (p *parser) value(depth int) (any, error) {
	if depth > maxDepth {
		return nil, errors.New("metadata is nested too deep")
	}
	switch p.skip() {
	case '"':
		return p.quoted()
	case '[':
		p.rest = p.rest[1:]
		list := []any{}
		for {
			switch p.skip() {
			case ']':
				p.rest = p.rest[1:]
				return list, nil
			case ',':
				p.rest = p.rest[1:]
				continue
			}
			v, err := p.value(depth + 1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
	}
	n := 0
	for n < len(p.rest) && strings.IndexByte("+-.0123456789", p.rest[n]) >= 0 {
		n++
	}
	v, err := strconv.ParseInt(p.rest[:n], 10, 64)
	if err != nil {
		if _, err := strconv.ParseFloat(p.rest[:n], 64); err != nil {
			return nil, errors.New("metadata has a value that is neither number, string nor list")
		}
	}
	p.rest = p.rest[n:]
	return v, nil
}

func (p *parser) quoted() (string, error) {
	var b strings.Builder
	for i := 1; i < len(p.rest); i++ {
		switch c := p.rest[i]; c {
		case '"':
			p.rest = p.rest[i+1:]
			return b.String(), nil
		case '\\':
			if i++; i < len(p.rest) {
				b.WriteByte(p.rest[i])
			}
		default:
			b.WriteByte(c)
		}
	}
	return "", errors.New("metadata ends within a string")
}
