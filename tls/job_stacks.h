/* Stacks for async jobs with a guard page: one that overflows ends the process instead of writing into the heap. */
#ifndef GP_TLS_JOB_STACKS_H
#define GP_TLS_JOB_STACKS_H

/* cffi: */
/* For all jobs of this process; to be called before the first one. 1, or 0: OpenSSL can't be told (before 3.4), or
 * there are jobs already. They have OpenSSL's own stacks then. */
int gp_job_stacks_guard(void);
/* :cffi */

#endif
