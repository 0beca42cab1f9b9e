// Command probe is what the tests of the cluster run in pods: an HTTP server that tells what can be seen from there.
//
//	GET /                  the pod's name
//	GET /env?name=NAME     a variable of its environment; 404 when it is not set
//	GET /get?url=URL       what that URL answers to the pod; 502 with the reason when it does not
//	PUT /file?path=PATH    writes the body to a file; GET reads it
package main

import (
	"io"
	"log"
	"net/http"
	"os"
	"time"
)

// Each request has a connection of its own, so that a service may send each to another pod. The patience is shorter
// than that of whoever asks, so that the answer is the reason and no time-out.
var client = http.Client{
	Timeout:   5 * time.Second,
	Transport: &http.Transport{DisableKeepAlives: true},
}

func main() {
	http.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		name, err := os.Hostname()
		answer(w, http.StatusInternalServerError, []byte(name), err)
	})
	http.HandleFunc("GET /env", func(w http.ResponseWriter, r *http.Request) {
		value, set := os.LookupEnv(r.FormValue("name"))
		if !set {
			w.WriteHeader(http.StatusNotFound)
		}
		io.WriteString(w, value)
	})
	http.HandleFunc("GET /get", func(w http.ResponseWriter, r *http.Request) {
		body, err := get(r.FormValue("url"))
		answer(w, http.StatusBadGateway, body, err)
	})
	http.HandleFunc("GET /file", func(w http.ResponseWriter, r *http.Request) {
		body, err := os.ReadFile(r.FormValue("path"))
		answer(w, http.StatusNotFound, body, err)
	})
	http.HandleFunc("PUT /file", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil {
			// Not FormValue: the body is the file.
			err = os.WriteFile(r.URL.Query().Get("path"), body, 0o644)
		}
		answer(w, http.StatusInternalServerError, nil, err)
	})
	log.Fatal(http.ListenAndServe(":8080", nil))
}

func get(url string) ([]byte, error) {
	response, err := client.Get(url)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	return io.ReadAll(response.Body)
}

func answer(w http.ResponseWriter, failed int, body []byte, err error) {
	if err != nil {
		w.WriteHeader(failed)
		body = []byte(err.Error())
	}
	w.Write(body)
}
