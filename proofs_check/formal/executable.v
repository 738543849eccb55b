(* The definitions as programs, each proved equal to its definition: the abstract sums, sets and maxima of definitions.v
   do not compute, loops over 0 ... n - 1 do. Numbers of any ordered domain; tests use rationals. *)

From mathcomp Require Import all_ssreflect ssralg ssrnum ssrint rat.
From alflb Require Import definitions topk.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Loops.
Variables (A : Type) (op : A -> A -> A) (start : A).

Definition loop n (P : pred nat) (f : nat -> A) : A :=
  foldr (fun k x => if P k then op (f k) x else x) start (iota 0 n).

Lemma loopE n (P : pred nat) (f : nat -> A) : \big[op/start]_(k < n | P k) f k = loop n P f.
Proof. by rewrite -(big_mkord P f) unlock /reducebig /index_iota subn0 /loop; elim: iota => //= k r ->. Qed.

End Loops.

Definition counted n (P : pred nat) : nat := loop addn 0%N n P (fun=> 1%N).

Lemma countedE n (P : pred nat) : #|[set k : 'I_n | P k]| = counted n P.
Proof. by rewrite /counted -loopE sum1dep_card. Qed.

(* Indices are whole numbers here; a function of them is read as one of the first n. *)
Definition restricted n (A : Type) (f : nat -> A) (k : 'I_n) : A := f k.

Section Programs.
Variables (R : realDomainType) (T E K : nat).
Implicit Types (v p q : nat -> R) (i j k : nat).
Let all : pred nat := xpredT.

Definition run_beats v k j := (v j < v k) || (v j == v k) && (k < j)%N.
Definition run_rank v k := counted E (fun j => run_beats v j k).
Definition run_in_topk v k := (run_rank v k < K)%N.
Definition run_top_sum v := loop +%R 0 E (run_in_topk v) v.
Definition run_spread v := loop Num.max 0 E all (fun j => loop Num.max 0 E all (fun k => v j - v k)).

Variables (scores : nat -> nat -> R) (L : nat -> R).

Definition run_biased p i k := scores i k + p k.
Definition run_picks p i k := run_in_topk (run_biased p i) k.
Definition run_load p k := counted T (fun i => run_picks p i k).
Definition run_D p := loop +%R 0 T all (fun i => run_top_sum (run_biased p i)) - loop +%R 0 E all (fun k => L k * p k).
Definition run_benefit p q i := run_top_sum (run_biased q i) - loop +%R 0 E (run_picks p i) (run_biased q i).
Definition run_sign_step u p k := p k + u * Num.sg (L k - (run_load p k)%:R).
Definition run_proportional_step eps p k := p k + eps * (L k - (run_load p k)%:R).
Definition run_violation p := loop +%R 0 E all (fun k => `|(run_load p k)%:R - L k|).
Definition run_affinity p := loop +%R 0 T all (fun i => loop +%R 0 E (run_picks p i) (scores i)).
Definition run_score_range := loop Num.max 0 T all (fun i => run_spread (scores i)).
Definition run_crossing k j i := scores i k - scores i j.
Definition run_window a w k j := counted T (fun i => a <= run_crossing k j i <= a + w).
Definition run_multiplicity w := maxn 1 (loop maxn 0%N E all (fun k => loop maxn 0%N E (fun j => k != j)
  (fun j => loop maxn 0%N T all (fun i => run_window (run_crossing k j i) w k j)))).

(* A run of the sign rule keeps each bias as a list, or it would be computed anew at every use. *)
Definition run_signs u (p : seq R) n : seq R := iter n (fun s => mkseq (run_sign_step u (nth 0 s)) E) p.

(* The assignment problem. *)
Definition run_feasible (x : nat -> nat -> R) : bool :=
  [&& seq.all (fun i => seq.all (fun k => 0 <= x i k <= 1) (iota 0 E)) (iota 0 T),
      seq.all (fun i => loop +%R 0 E all (x i) == K%:R) (iota 0 T)
    & seq.all (fun k => loop +%R 0 T all (x ^~ k) == L k) (iota 0 E)].
Definition run_value (x : nat -> nat -> R) :=
  loop +%R 0 T all (fun i => loop +%R 0 E all (fun k => scores i k * x i k)).

(* ---- each is its definition *)
Let scores' (i : 'I_T) (k : 'I_E) : R := scores i k.
Let vector p : 'I_E -> R := restricted p.

Lemma run_rankE v (k : 'I_E) : rank (vector v) k = run_rank v k.
Proof. by rewrite /rank /run_rank -countedE. Qed.

Lemma run_in_topkE v (k : 'I_E) : (k \in topk K (vector v)) = run_in_topk v k.
Proof. by rewrite inE run_rankE. Qed.

Lemma run_top_sumE v : top_sum K (vector v) = run_top_sum v.
Proof. by rewrite /run_top_sum -loopE; apply: eq_bigl => k; rewrite run_in_topkE. Qed.

Theorem run_spreadE v : spread (vector v) = run_spread v.
Proof. by rewrite /run_spread -loopE; apply: eq_bigr => j _; rewrite -loopE. Qed.

Lemma run_picksE p (i : 'I_T) (k : 'I_E) : (k \in picks K scores' (vector p) i) = run_picks p i k.
Proof. exact: run_in_topkE. Qed.

Theorem run_loadE p (k : 'I_E) : load K scores' (vector p) k = run_load p k.
Proof. by rewrite /run_load -countedE; apply: eq_card => i; rewrite in_set [RHS]in_set run_picksE. Qed.

Theorem run_DE p : D K scores' (vector L) (vector p) = run_D p.
Proof.
rewrite /run_D -!loopE; congr (_ - _); apply: eq_bigr => i _.
by rewrite -run_top_sumE.
Qed.

Theorem run_benefitE p q (i : 'I_T) : benefit K scores' (vector p) (vector q) i = run_benefit p q i.
Proof.
rewrite /run_benefit -loopE -run_top_sumE; congr (_ - _).
by apply: eq_bigl => k; rewrite run_picksE.
Qed.

Lemma run_sign_stepE u p (k : 'I_E) :
  sign_step K scores' (vector L) u (vector p) k = run_sign_step u p k.
Proof. by rewrite /sign_step run_loadE. Qed.

Theorem run_proportional_stepE eps p (k : 'I_E) :
  proportional_step K scores' (vector L) eps (vector p) k = run_proportional_step eps p k.
Proof. by rewrite /proportional_step run_loadE. Qed.

Theorem run_violationE p : violation K scores' (vector L) (vector p) = run_violation p.
Proof. by rewrite /run_violation -loopE; apply: eq_bigr => k _; rewrite run_loadE. Qed.

Theorem run_affinityE p : affinity K scores' (vector p) = run_affinity p.
Proof.
rewrite /run_affinity -loopE; apply: eq_bigr => i _; rewrite -loopE.
by apply: eq_bigl => k; rewrite run_picksE.
Qed.

Theorem run_score_rangeE : score_range scores' = run_score_range.
Proof. by rewrite /run_score_range -loopE; apply: eq_bigr => i _; rewrite -run_spreadE. Qed.

Lemma run_windowE a w (k j : 'I_E) : #|window scores' a w k j| = run_window a w k j.
Proof. by rewrite /run_window -countedE. Qed.

Theorem run_multiplicityE w : multiplicity scores' w = run_multiplicity w.
Proof.
rewrite /run_multiplicity -loopE; congr maxn; apply: eq_bigr => k _; rewrite -loopE.
by apply: eq_bigr => j _; rewrite -loopE; apply: eq_bigr => i _; rewrite -run_windowE.
Qed.

Theorem run_signsE u (p : seq R) n (k : 'I_E) :
  iter n (sign_step K scores' (vector L) u) (vector (nth 0 p)) k = nth 0 (run_signs u p n) k.
Proof.
elim: n k => //= n IH k; rewrite nth_mkseq // -run_sign_stepE.
exact: eq_sign_step.
Qed.

Let matrix (x : nat -> nat -> R) (i : 'I_T) (k : 'I_E) : R := x i k.

Lemma run_feasibleP x : run_feasible x -> feasible K (vector L) (matrix x).
Proof.
have at_index n (P : pred nat) (k : 'I_n) : seq.all P (iota 0 n) -> P k.
  by move/allP; apply; rewrite mem_iota ltn_ord.
case/and3P=> bounds rows columns; split=> [i k|i|k].
- exact: at_index (at_index _ _ i bounds).
- by have /eqP := at_index _ _ i rows; rewrite -loopE.
by have /eqP := at_index _ _ k columns; rewrite -loopE.
Qed.

Lemma run_valueE x : value scores' (matrix x) = run_value x.
Proof. by rewrite /run_value -loopE; apply: eq_bigr => i _; rewrite -loopE. Qed.

End Programs.

(* Whole numbers are faster than rationals: loads and sign steps do not change when they are read as other numbers. *)
Section WholeNumbers.
Variables (R : realDomainType) (T E K : nat) (scores : 'I_T -> 'I_E -> int) (L : 'I_E -> int) (u : int).
Definition read (f : 'I_E -> int) (k : 'I_E) : R := (f k)%:~R.
Let scores' (i : 'I_T) : 'I_E -> R := read (scores i).

Lemma load_whole p : load K scores' (read p) =1 load K scores p.
Proof.
move=> k; apply: eq_card => i; rewrite !in_set; congr (_ < _)%N.
by apply: eq_card => j; rewrite !inE /beats /biased -!rmorphD ltr_int eqr_int.
Qed.

Lemma sign_step_whole p : sign_step K scores' (read L) u%:~R (read p) =1 read (sign_step K scores L u p).
Proof.
move=> k; rewrite /sign_step load_whole /read rmorphD rmorphM /=.
have -> : (L k)%:~R - (load K scores p k)%:R = (L k - (load K scores p k)%:R)%:~R :> R.
  by rewrite rmorphB /= rmorph_nat.
by rewrite sgrEz sgz_int [in RHS]sgrEz intz.
Qed.

Lemma iter_sign_step_whole p n :
  iter n (sign_step K scores' (read L) u%:~R) (read p) =1 read (iter n (sign_step K scores L u) p).
Proof.
elim: n => //= n IH k; rewrite -sign_step_whole.
exact: eq_sign_step.
Qed.

End WholeNumbers.

(* Tables of whole numbers, read as rational scores and biases. *)
Definition whole_table (rows : seq (seq int)) (i k : nat) : int := nth 0 (nth [::] rows i) k.
Definition table rows (i k : nat) : rat := (whole_table rows i k)%:~R.
Definition row (values : seq int) (k : nat) : rat := (nth 0 values k)%:~R.

(* Everything the library computes too, for one instance: scores, biases p and q, step u, targets L. *)
Definition report T E K (scores : seq (seq int)) (p q : seq int) (u : int) (L : seq rat) : seq rat :=
  let s := table scores in let target := nth 0 L in let tokens := iota 0 T in let experts := iota 0 E in
  let A := run_load T E K s (row p) in let A' := run_load T E K s (row q) in let D := run_D T E K s target in
  let m := run_multiplicity T E s (2%:R * u%:~R) in let rho := run_score_range T E s in
  let violation := run_violation T E K s target (row p) in let width := run_spread E (row p) in
  let R := find (fun R => rho < 2%:R * u%:~R * R%:R) (iota 0 400) in
  let slope load := loop +%R 0 E xpredT (fun k => ((load k)%:R - target k) * (row q k - row p k)) in
  [seq (run_picks E K s (row p) i k : nat)%:R | i <- tokens, k <- experts] ++ [seq (A k)%:R | k <- experts] ++
  [:: loop +%R 0 T xpredT (fun i => run_top_sum E K (run_biased s (row p) i)); D (row p); D (row q);
      loop +%R 0 T xpredT (run_benefit E K s (row p) (row q)); slope A; slope A'; violation;
      run_affinity T E K s (row p); width; rho; 2%:R^-1 * violation * (width + rho); m%:R;
      sharp_band [realFieldType of rat] m E; R%:R; (if (E <= 3)%N then R else (E * R)./2)%:R] ++
  [seq run_proportional_step T E K s target u%:~R (row p) k | k <- experts] ++
  run_signs T E K s target u%:~R [seq row p k | k <- experts] 3.
