"""TLS over OpenSSL's async jobs, in the manner of pyOpenSSL."""
