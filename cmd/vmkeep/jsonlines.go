package main

import (
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strings"
	"time"
	"unicode"
)

// writeJSON writes one JSON line: v's fields after message_type, by the rule that the whole schema follows: names in
// snake case, bytes as numbers, durations in seconds, times as RFC 3339 in UTC. Fields are always there, but for
// absent structures and unset times.
func writeJSON(w io.Writer, messageType string, v any) {
	var b strings.Builder
	b.WriteString(`{"message_type":` + quote(messageType))
	fields(&b, reflect.ValueOf(v), false)
	b.WriteString("}\n")
	io.WriteString(w, b.String())
}

func fields(b *strings.Builder, v reflect.Value, first bool) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		value := v.Field(i)
		if !f.IsExported() || f.Type.Kind() == reflect.Interface || absent(value) {
			continue
		}
		if f.Anonymous {
			fields(b, value, first)
			first = false
			continue
		}
		if !first {
			b.WriteByte(',')
		}
		first = false
		name := snake(f.Name)
		if f.Type == reflect.TypeFor[time.Duration]() {
			name += "_seconds"
		}
		b.WriteString(quote(name) + ":")
		element(b, value)
	}
}

func absent(v reflect.Value) bool {
	if t, ok := v.Interface().(time.Time); ok {
		return t.IsZero()
	}
	return v.Kind() == reflect.Pointer && v.IsNil()
}

func element(b *strings.Builder, v reflect.Value) {
	switch x := v.Interface().(type) {
	case time.Time:
		b.WriteString(quote(x.UTC().Format(time.RFC3339Nano)))
		return
	case time.Duration:
		fmt.Fprintf(b, "%g", x.Seconds())
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		element(b, v.Elem())
	case reflect.Struct:
		b.WriteByte('{')
		fields(b, v, true)
		b.WriteByte('}')
	case reflect.Slice:
		b.WriteByte('[')
		for i := range v.Len() {
			if i > 0 {
				b.WriteByte(',')
			}
			element(b, v.Index(i))
		}
		b.WriteByte(']')
	case reflect.String:
		b.WriteString(quote(v.String()))
	case reflect.Map:
		if v.IsNil() {
			b.WriteString("{}")
			return
		}
		fallthrough
	default:
		text, err := json.Marshal(v.Interface())
		if err != nil {
			panic(err) // a type that JSON has no word for; the schema test excludes it
		}
		b.Write(text)
	}
}

// quote is s as a JSON string; bytes that are not UTF-8 are replaced.
func quote(s string) string {
	text, err := json.Marshal(s)
	if err != nil {
		panic(err) // strings always marshal
	}
	return string(text)
}

// snake spells InstanceUUID as instance_uuid.
func snake(name string) string {
	var b strings.Builder
	r := []rune(strings.NewReplacer("VCenter", "Vcenter", "VSphere", "Vsphere", "IDs", "Ids", "BIOSUUID", "BiosUUID").Replace(name))
	for i, c := range r {
		if unicode.IsUpper(c) && i > 0 && (!unicode.IsUpper(r[i-1]) || i+1 < len(r) && unicode.IsLower(r[i+1])) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(c))
	}
	return b.String()
}
