(* C5, finite entry: sign rule with step u from p = 0, the same scores of range rho at every step, equal targets
   L = K T / E, any K. Let R be a whole number with rho < 2 u R, such as floor(rho / 2u) + 1. Then every expert is
   inside the sharp band of C4 from step floor(E R / 2) on, and from step R on if E <= 3.

   Idea: let k be overloaded and outside the band at step n. It has been so from the start (C4). A bias that exceeds k's
   by more than rho belongs to an expert with a load as large as k's, so no expert has been underloaded more than R
   times. A step with only one underloaded expert names one that has been underloaded from the start, so all such steps
   name the same one; all others have two or more. Hence 2 (n + 1) <= (E - 1) R + R. *)

From mathcomp Require Import all_ssreflect ssralg ssrnum ssrint zify ring.
From alflb Require Import definitions topk c4_absorbing_band.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* ---------------------------------------------- what a run of the sign rule is, up to its mirror image *)
Section Run.
Variables (F : realDomainType) (E m : nat) (u rho : F) (R : nat).
Hypotheses (m0 : (0 < m)%N) (u0 : 0 < u) (rho0 : 0 <= rho) (rhoR : rho < 2%:R * u * R%:R).
Implicit Types (s : int) (a : nat -> 'I_E -> int) (p : nat -> 'I_E -> F) (n t : nat) (i j k : 'I_E).

(* Loads a and biases p; an expert whose bias is ahead of another's by more than rho has at least its load. *)
Record sign_run s a p : Prop := SignRun {
  from_zero : forall k, p 0%N k = 0;
  bias_step : forall n k, p n.+1 k = p n k - u * (Num.sg (excess s (a n) k))%:~R;
  total_load : forall n, \sum_k a n k = s;
  load_step : forall n, trade m s (a n) (a n.+1);
  dominance : forall n j k, rho < p n j - p n k -> a n k <= a n j
}.

Lemma sign_run_mirrored s a p : sign_run s a p ->
  sign_run (- s) (fun n => mirrored (a n)) (fun n k => - p n k).
Proof.
case=> zero bias total load ahead; split=> [k|n k|n|n|n j k].
- by rewrite zero oppr0.
- by rewrite bias excess_mirrored sgrN mulrNz mulrN opprK opprB addrC.
- by rewrite sumrN total.
- exact: trade_mirrored.
by rewrite opprK addrC => /ahead; rewrite ler_opp2.
Qed.

Variables (s : int) (a : nat -> 'I_E -> int) (p : nat -> 'I_E -> F).
Hypothesis run : sign_run s a p.
Local Notation band := (whole_band E m).
Let e n k : int := excess s (a n) k.

Lemma stays_below t n k : (t <= n)%N -> e t k <= band -> e n k <= band.
Proof.
elim: n => [|n IH]; first by rewrite leqn0 => /eqP->.
rewrite leq_eqVlt => /orP[/eqP->//|/IH {}IH /IH].
exact: (band_above m0 (total_load run n) (load_step run n)).
Qed.

Lemma stays_above t n k : (t <= n)%N -> - band <= e t k -> - band <= e n k.
Proof.
elim: n => [|n IH]; first by rewrite leqn0 => /eqP->.
rewrite leq_eqVlt => /orP[/eqP->//|/IH {}IH /IH].
exact: (band_below m0 (total_load run n) (load_step run n)).
Qed.

Lemma above_before t n k : (t <= n)%N -> band < e n k -> band < e t k.
Proof. by move=> tn; rewrite !ltNge; apply: contra; apply: stays_below. Qed.

Lemma below_before t n k : (t <= n)%N -> e n k < - band -> e t k < - band.
Proof. by move=> tn; rewrite !ltNge; apply: contra; apply: stays_above. Qed.

Lemma band_ge0 k : 0 <= band.
Proof. by have := num_experts_gt0 k; rewrite /whole_band; nia. Qed.

(* ---- k is overloaded and outside the band at step n *)
Variables (n : nat) (k : 'I_E).
Hypothesis outside : band < e n k.

Lemma over t : (t <= n)%N -> 0 < e t k.
Proof. by move=> tn; apply: le_lt_trans (band_ge0 k) (above_before tn outside). Qed.

Lemma bias_of_overloaded j t : (forall t', (t' < t)%N -> 0 < e t' j) -> p t j = - (u * t%:R).
Proof.
elim: t => [|t IH] ov; first by rewrite (from_zero run) mulr0 oppr0.
rewrite (bias_step run) IH => [|t' tt]; last by apply: ov; apply: ltnW.
by rewrite (gtr0_sg (ov t (ltnSn t))) mulrSr; ring.
Qed.

(* How often j has been underloaded before step t. *)
Definition shortages t j : nat := \sum_(0 <= t' < t) (e t' j < 0)%R.

Lemma shortagesS t j : shortages t.+1 j = (shortages t j + (e t j < 0)%R)%N.
Proof. by rewrite /shortages big_nat_recr. Qed.

(* Each shortage of j brings its bias 2u nearer, and no step takes it away. *)
Lemma gap_ge t j : (t <= n.+1)%N -> 2%:R * u * (shortages t j)%:R <= p t j - p t k.
Proof.
elim: t => [|t IH] tn; first by rewrite /shortages big_geq // !(from_zero run) mulr0 subrr.
have {}IH := IH (ltnW tn); rewrite shortagesS natrD mulrDr !(bias_step run) (gtr0_sg (over tn)).
have -> : p t j - u * (Num.sg (e t j))%:~R - (p t k - u * 1%:~R) =
    p t j - p t k + u * (1 - (Num.sg (e t j))%:~R) by ring.
apply: ler_add IH _; rewrite -mulrA mulrCA ler_pmul2l //.
by case: sgrP => /= _; rewrite ?mulr0 ?subrr ?subr0 ?ler01 // mulr1 mulrNz opprK.
Qed.

Lemma gap_le t j : (t <= n)%N -> p t j - p t k <= rho.
Proof.
move=> tn; rewrite leNgt; apply/negP=> far.
have : band < e t j.
  apply: lt_le_trans (above_before tn outside) _; rewrite ler_add2r.
  by apply: ler_wpmul2l => //; apply: (dominance run).
move=> out_j; move: far; rewrite !bias_of_overloaded => [|t' tt|t' tt].
- by rewrite subrr ltNge rho0.
- exact/over/ltnW/(leq_trans tt).
exact/(le_lt_trans (band_ge0 k))/(above_before (ltnW tt) out_j).
Qed.

Lemma shortages_le t j : (t <= n.+1)%N -> (shortages t j <= R)%N.
Proof.
elim: t => [|t IH] tn; first by rewrite /shortages big_geq.
rewrite shortagesS; have [under|_] := boolP (e t j < 0)%R; last by rewrite addn0; apply: IH; apply: ltnW.
rewrite addn1 -(ltr_nat F) -(ltr_pmul2l (_ : 0 < 2%:R * u)); last by rewrite mulr_gt0 // ltr0n.
exact: le_lt_trans (le_trans (gap_ge j (ltnW tn)) (gap_le j tn)) rhoR.
Qed.

Lemma shortages_of_k t : (t <= n.+1)%N -> shortages t k = 0%N.
Proof.
elim: t => [|t IH] tn; first by rewrite /shortages big_geq.
by rewrite shortagesS IH ?(ltnW tn) // ltNge ltW // over.
Qed.

Definition underloaded t : {set 'I_E} := [set j | e t j < 0].

Lemma underloaded_gt0 t : (t <= n)%N -> (0 < #|underloaded t|)%N.
Proof.
move=> tn; have [j uj] := someone_under (total_load run t) (over tn).
by apply/card_gt0P; exists j; rewrite inE.
Qed.

Lemma sum_underloaded : (\sum_(0 <= t < n.+1) #|underloaded t| <= (E - 1) * R)%N.
Proof.
have -> : (\sum_(0 <= t < n.+1) #|underloaded t| = \sum_j shortages n.+1 j)%N.
  rewrite exchange_big; apply: eq_bigr => t _ /=.
  by rewrite -sum1dep_card big_mkcond; apply: eq_bigr => j _; case: (_ < _).
rewrite (bigD1 k) //= shortages_of_k // add0n.
apply: (@leq_trans (\sum_(j | j != k) R)); first by apply: leq_sum => j _; apply: shortages_le.
by rewrite sum_nat_const leq_mul2r (cardC1 k) card_ord subn1 leqnn orbT.
Qed.

(* Where only j is underloaded it lacks what k has too much, so it has been underloaded from the start. *)
Lemma lone_shortage t t' j : (t <= n)%N -> (#|underloaded t| < 2)%N -> j \in underloaded t ->
  (t' <= t)%N -> e t' j < 0.
Proof.
move=> tn few uj t't; have jk : j != k.
  by apply: contraTneq uj => ->; rewrite inE -leNgt ltW // over.
have others i : i != j -> 0 <= e t i.
  move=> ij; rewrite leNgt; apply: contraL few => ui; rewrite -leqNgt.
  by rewrite (cardsD1 j) uj (cardsD1 i) !inE ij ui.
have deficit := lone_deficit (total_load run t) jk others.
have out_k := above_before tn outside.
have : e t' j < - band by apply: below_before t't _; move: deficit out_k; rewrite -!/(e _ _); lia.
by move/lt_le_trans; apply; rewrite oppr_le0 (band_ge0 k).
Qed.

(* So one expert is underloaded at every step that has only one such. *)
Lemma always_short : exists2 j, j != k &
  forall t, (t <= n)%N -> (#|underloaded t| < 2)%N -> e t j < 0.
Proof.
have not_k t j : (t <= n)%N -> j \in underloaded t -> j != k.
  by move=> tn; apply: contraTneq => ->; rewrite inE -leNgt ltW // over.
suff upto n' : (n' <= n)%N -> exists2 j, j != k &
    forall t, (t <= n')%N -> (#|underloaded t| < 2)%N -> e t j < 0 by exact: upto.
elim: n' => [|n' IH] n'n; have /card_gt0P[j uj] := underloaded_gt0 n'n.
  by exists j; [exact: not_k uj | move=> t; rewrite leqn0 => /eqP->; move: uj; rewrite inE].
have [few|many] := ltnP #|underloaded n'.+1| 2.
  by exists j; [exact: not_k uj | move=> t tn' _; apply: lone_shortage tn'].
have [i ik short] := IH (ltnW n'n); exists i => // t; rewrite leq_eqVlt => /orP[/eqP->|].
  by rewrite ltnNge many.
by rewrite ltnS => /short; apply.
Qed.

Lemma late_bound : (n.+1.*2 <= E * R)%N.
Proof.
have [j _ short] := always_short.
have : (\sum_(0 <= t < n.+1) 2 <= \sum_(0 <= t < n.+1) (#|underloaded t| + (e t j < 0)%R))%N.
  rewrite !big_mkord; apply: leq_sum => -[t tn] _ /=.
  have [few|many] := ltnP #|underloaded t| 2; last by rewrite (leq_trans many) // leq_addr.
  by rewrite short // addn1 ltnS underloaded_gt0.
rewrite big_split /= -/(shortages n.+1 j) sum_nat_const_nat subn0 muln2 => /leq_trans; apply.
have E0 := num_experts_gt0 k; apply: leq_trans (leq_add sum_underloaded (shortages_le j (leqnn n.+1))) _.
by rewrite mulnBl mul1n subnK // leq_pmull.
Qed.

(* With at most three experts the same one is underloaded at every step. *)
Lemma late_bound_few_experts : (E <= 3)%N -> (n.+1 <= R)%N.
Proof.
move=> E3; have [j jk short] := always_short; apply: leq_trans (shortages_le j (leqnn n.+1)).
rewrite -[X in (X <= _)%N](subn0 n.+1) -[X in (X <= _)%N]muln1 -sum_nat_const_nat /shortages !big_mkord.
apply: leq_sum => -[t tn] _ /=; have [few|many] := ltnP #|underloaded t| 2; first by rewrite short.
have sub : underloaded t \subset [set~ k].
  by apply/subsetP=> i; rewrite !inE; apply: contraTneq => ->; rewrite -leNgt ltW // over.
have /eqP full : underloaded t == [set~ k].
  by rewrite eqEcard sub cardsC1 card_ord; lia.
have : j \in underloaded t by rewrite full !inE.
by rewrite inE => ->.
Qed.

End Run.

(* --------------------------------------------------------------------- C5 *)
Section FiniteEntry.
Variables (F : realFieldType) (T E K : nat) (scores : 'I_T -> 'I_E -> F) (u : F) (R : nat).
Hypotheses (KE : (K <= E)%N) (u0 : 0 < u) (rhoR : score_range scores < 2%:R * u * R%:R).
Implicit Types (j k : 'I_E) (n : nat).
Local Notation A := (load K scores).
Local Notation L := (even F T K).
Local Notation m := (multiplicity scores (2%:R * u)).
Local Notation rho := (score_range scores).

Definition bias n : 'I_E -> F := iter n (sign_step K scores L u) (fun=> 0).
Local Notation loads n := (loads K scores (bias n)).
Local Notation total := (total T K).

Lemma run_of_sign_rule : sign_run m u rho total (fun n => loads n) bias.
Proof.
split=> [//|n k|n|n|n j k ahead].
- by rewrite /bias iterS /sign_step sg_deviation sgrN mulrNz mulrN.
- exact: sum_loads_int.
- exact: sign_step_trade.
rewrite lez_nat; apply: load_le => i; rewrite /biased -ltr_subr_addr.
by have := le_lt_trans (score_range_ge scores i k j) ahead; rewrite ltr_subl_addr addrC addrA.
Qed.

Lemma outside_band n k : sharp_band F m E < `|(A (bias n) k)%:R - L k| ->
  exists s a p, sign_run m u rho s a p /\ whole_band E m < excess s (a n) k.
Proof.
have E0 : 0 < E%:R :> F by rewrite ltr0n (num_experts_gt0 k).
rewrite -(ltr_pmul2l E0) -(whole_band_sharp scores u k) -(gtr0_norm E0) -normrM -excess_deviation.
rewrite -intr_norm ltr_int; have run := run_of_sign_rule.
case: (ger0P (excess total (loads n) k)) => _ out; first by exists total, (fun n => loads n), bias.
exists (- total), (fun n => mirrored (loads n)), (fun n k => - bias n k).
by split; [exact: sign_run_mirrored | rewrite excess_mirrored].
Qed.

Theorem finite_entry n k : ((E * R)./2 <= n)%N -> `|(A (bias n) k)%:R - L k| <= sharp_band F m E.
Proof.
move=> late; rewrite leNgt; apply/negP=> /outside_band[s [a [p [run out]]]].
have := late_bound (multiplicity_gt0 scores u) u0 (score_range_ge0 scores) rhoR run out.
by lia.
Qed.

Theorem finite_entry_few_experts n k : (E <= 3)%N -> (R <= n)%N ->
  `|(A (bias n) k)%:R - L k| <= sharp_band F m E.
Proof.
move=> E3 late; rewrite leNgt; apply/negP=> /outside_band[s [a [p [run out]]]].
have := late_bound_few_experts (multiplicity_gt0 scores u) u0 (score_range_ge0 scores) rhoR run out E3.
by rewrite ltnNge late.
Qed.

End FiniteEntry.
